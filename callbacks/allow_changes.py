"""Whether a resumed fit continues with the settings that it was started with."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.callbacks.parts import explain_unknown_arguments
from hpa_lightning.data.resuming import described, differences, refuse_changes
from hpa_lightning.trainer_attributes import datamodule_of

if TYPE_CHECKING:
    from hpa_lightning.callbacks.task import TaskCallback

FIT = "hpa_lightning_fit"
"""The key of a checkpoint that holds :func:`fit_settings` as ``"settings"`` and :func:`optimizer_settings`."""

_TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision", "world_size")
_NEWER = ("limit_train_batches", "overfit_batches")
"""Compared too, as text since 1 is one batch and 1.0 all of them; checkpoints of earlier versions do not hold them."""
_HOW = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Arguments of torch's optimizers that say how a step is computed, not what."""


class AllowChanges(L.Callback):
    """Lets a fit continue from a checkpoint that was made with other data or settings.

    Without it a difference is an error that lists both sides. With it there is one warning, and the ``resume`` event of
    the result file names the differences under ``changes``. It is a callback, so that it can be given to fits with any
    datamodule and without one, from Python, YAML and the command line:
    ``--trainer.callbacks+=hpa_lightning.callbacks.AllowChanges``. Take it out again afterwards.

    Hooks: none. State: none.

    Args:
        names: beginnings of the names of what may differ, as the error lists them (``"tasks.digits"``); everything when
            ``None``.

    Example:
        >>> from hpa_lightning.callbacks import AllowChanges
        >>> AllowChanges(["tasks.digits"]).allows_change("tasks.digits.train")
        True
    """

    @explain_unknown_arguments
    def __init__(self, names: list[str] | None = None) -> None:
        self.names = names
        self.allowed: list[str] = []

    def allows_change(self, name: str) -> bool:
        """Whether the entry of this name may differ; it is noted in ``allowed``."""
        allowed = self.names is None or any(name == item or name.startswith(f"{item}.") for item in self.names)
        if allowed and name not in self.allowed:
            self.allowed.append(name)
        return allowed


def callback_settings(callback: TaskCallback) -> dict[str, Any]:
    """The constructor's arguments as the callback keeps them, without those that cannot change what is trained.

    An argument that is not kept under its own name is left out.
    """
    names = inspect.signature(type(callback).__init__).parameters
    values = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
    found = {name: described(value) for name, value in values.items() if name not in callback.free_settings}
    for value in found.values():
        if isinstance(value, dict):
            for name in callback.free_settings:
                value.pop(name, None)
    return found


def fit_settings(trainer: L.Trainer, callbacks: list[TaskCallback]) -> dict[str, Any]:
    """What a resumed fit must have in common with the one that wrote the checkpoint, data apart.

    Returns:
        ``"callbacks"``: class name -> settings; ``"trainer"``: what changes training whatever the machine;
        ``"datamodule"``: its class, or ``None``.
    """
    datamodule = datamodule_of(trainer)
    return {
        "callbacks": {
            type(callback).__name__: callback_settings(callback) for callback in callbacks if callback.shapes_training
        },
        "trainer": {name: described(getattr(trainer, name, None)) for name in _TRAINER}
        | {name: repr(getattr(trainer, name, None)) for name in _NEWER},
        "datamodule": None if datamodule is None else type(datamodule).__qualname__,
    }


def check_settings(trainer: L.Trainer, saved: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Compare a checkpoint's settings with those of the fit that loads it.

    Raises:
        ValueError: a difference that :class:`AllowChanges` does not allow.
    """
    if saved is None:
        rank_zero_warn(
            "The checkpoint does not hold the settings of its callbacks (it is of an older version, or of a fit "
            "without these callbacks); whether they are the same is not checked."
        )
        return
    reported, callbacks = dict(saved.get("callbacks", {})), dict(now.get("callbacks", {}))
    unreported = [name for name, settings in reported.items() if not settings and callbacks.get(name)]
    if unreported:  # the constructor of RegressionFusion once named none
        rank_zero_warn(f"The checkpoint does not hold the settings of {', '.join(unreported)}; they are not checked.")
    for name in unreported:
        reported.pop(name)
        callbacks.pop(name)
    known = saved.get("trainer", {})
    settings = {name: value for name, value in now.get("trainer", {}).items() if name in known or name not in _NEWER}
    now = {**now, "trainer": settings}
    refuse_changes(trainer, differences({**saved, "callbacks": reported}, {**now, "callbacks": callbacks}), "fit")


def optimizer_settings(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Class and arguments of every optimizer: a checkpoint brings back its own, but the next task gets a fresh one."""
    found = []
    for optimizer in trainer.optimizers:
        arguments = {name: described(value) for name, value in optimizer.defaults.items() if name not in _HOW}
        found.append({"class": type(optimizer).__name__, **arguments})
    return found


def check_optimizers(trainer: L.Trainer, saved: list[dict[str, Any]] | None) -> None:
    """Compare the optimizers of a checkpoint with those that the fit has made.

    Raises:
        ValueError: a difference that :class:`AllowChanges` does not allow.
    """
    if saved is not None:
        before, now = (
            {f"optimizers.{number}": one for number, one in enumerate(side)}
            for side in (saved, optimizer_settings(trainer))
        )
        refuse_changes(trainer, differences(before, now), "fit")
