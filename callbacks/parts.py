"""What a task callback is put together from, and how a misspelt argument of one is answered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import lightning as L

from hpa_lightning.values import nearest

if TYPE_CHECKING:
    from hpa_lightning.callbacks.current_task import CurrentTask
    from hpa_lightning.callbacks.task import TaskCallback


class Part:
    """A part that a task callback owns: it is called at the same moments and has its own state.

    A callback takes it in with ``self.own(part)``. Its state is in the callback's, with that of the other parts,
    so that the keys of all parts differ.

    Args:
        owner: the callback, which the part's messages name.
    """

    follows: Mapping[str, str] = {}
    """The callback's settings, by name, that the part holds under another: what is set there is set here."""

    def __init__(self, owner: TaskCallback) -> None:
        self.owner = owner

    @property
    def caller(self) -> str:
        """The callback's name, for messages."""
        return type(self.owner).__name__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before a fit: refuse what cannot work."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called when the model is on its device and the optimizers exist."""

    def on_task_open(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called before the callbacks' ``on_task_start``: try what may fail."""

    def on_before_step(self) -> None:
        """Called before every optimizer step of a task."""

    def on_task_trained(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Called before the callbacks' ``on_task_end``: the model is as training has left it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what belongs to this part out of the callback's state."""


def explain_unknown_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor answer unknown keywords in the name of the class that is made, with the nearest name."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
        return init

    @functools.wraps(init)
    def checked(self: Any, *arguments: Any, **settings: Any) -> None:
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            takes = ", ".join(known) or "none"
            meant = nearest(unknown, known)
            raise TypeError(f"{type(self).__name__} has no argument {unknown!r}; it takes {takes}{meant}")
        init(self, *arguments, **settings)

    return checked
