"""The state of the weights in a checkpoint: after a task's end, or before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

TASK_STATE = "hpa_lightning"
"""The key of a checkpoint that holds what ``TaskCallback.task_state`` returned."""


@runtime_checkable
class HasTaskState(Protocol):
    """A callback that knows the state of the weights: any ``TaskCallback``."""

    ended_the_stream: bool

    def task_state(self, trainer: Any) -> dict[str, Any]: ...


def state_of_trainer(trainer: Any) -> dict[str, Any] | None:
    """The state of the weights of the model that ``trainer`` has trained; ``None`` without a task callback."""
    leader = next((item for item in getattr(trainer, "callbacks", ()) if isinstance(item, HasTaskState)), None)
    return None if leader is None else leader.task_state(trainer)


def unfinished_weights(state: Mapping[str, Any] | None) -> str | None:
    """Say in one sentence why a model in this state is not the one that counts; ``None`` if it is.

    Args:
        state: what :meth:`TaskCallback.task_state` returned, or ``None`` if nothing is known.
    """
    if not state or not state["pending"]:
        return None
    what = ", ".join(state["pending"])
    when = "before the end" if state["trained"] else "in the middle"
    return (
        f"the weights are from {when} of task {state['open_task']} ({state['task']!r}): what {what} does to them at "
        "its end has not been done. Resume the fit from this checkpoint (fit --ckpt_path) to finish the task"
    )
