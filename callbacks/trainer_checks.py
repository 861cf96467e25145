"""What the callbacks refuse in a Trainer, by name, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.needs import task_stream
from hpa_lightning.redaction import masked_text
from hpa_lightning.trainer_attributes import callbacks_of, is_dev_run, loaded_by_finder, resumed_from

if TYPE_CHECKING:
    from hpa_lightning.callbacks.task import TaskCallback


def check_strategy(strategy: Strategy, caller: TaskCallback) -> None:
    """Refuse a strategy under which the callback's promises would not hold.

    Raises:
        MisconfigurationException: the strategy is not supported; the reason is given.
    """
    parallel = strategy.device_mesh["tensor_parallel"].size() if isinstance(strategy, ModelParallelStrategy) else 1
    if reason := strategy_refusal(type(strategy), caller, parallel):
        raise MisconfigurationException(reason)


def strategy_refusal(kind: type[Strategy], caller: TaskCallback, tensor_parallel: int = 1) -> str | None:
    """Say why a callback does not support a strategy; ``None`` if it does.

    Args:
        kind: the strategy's class.
        caller: the callback.
        tensor_parallel: processes that share a weight under ``ModelParallelStrategy``.
    """
    if issubclass(kind, ModelParallelStrategy):
        if caller.refuses_sharding is None and tensor_parallel == 1:
            return None
        pieces = (
            f"tensor_parallel_size is {tensor_parallel}, and columns cut in pieces cannot be addressed; set it to 1"
        )
        reason = caller.refuses_sharding or pieces
    elif issubclass(kind, DeepSpeedStrategy):
        reason = (
            "DeepSpeed steps on fp32 copies of the weights that it keeps for itself and that overwrite what a callback "
            "writes into the model, and it builds its optimizer once, not for every task"
        )
    elif issubclass(kind, (SingleDeviceStrategy, DDPStrategy)):
        return None
    elif issubclass(kind, FSDPStrategy):
        reason = "FSDP1 flattens the parameters, which then have no columns"
    else:
        reason = "it is none of those that the callbacks were tested with"
    return (
        f"{type(caller).__name__} does not support {kind.__name__}: {reason}. Supported are one device, strategy='ddp'"
        + ("." if caller.refuses_sharding else ", and FSDP2 (ModelParallelStrategy with tensor_parallel_size=1).")
    )


_WRITERS = {
    "WeightAveraging": "replaces the weights by its average at the end of the fit, and in checkpoints",
    "StochasticWeightAveraging": "replaces the weights by its average at the end of the fit",
    "ModelPruning": "takes the weights out of the layers and rewrites them before every forward pass",
}
"""Lightning's callbacks that write weights outside the optimizer step; their subclasses do too."""


def check_weight_writers(trainer: L.Trainer, caller: TaskCallback) -> None:
    """Refuse Lightning's callbacks that write weights outside the optimizer step.

    Those of others are noticed when they do it (:func:`hpa_lightning.callbacks.kept_weights.check_unmoved`).

    Raises:
        MisconfigurationException: the trainer has one; what it does.
    """
    for name, what in _WRITERS.items():
        kind = getattr(lightning_callbacks, name, None)  # not in every supported version of Lightning
        found = [callback for callback in callbacks_of(trainer) if kind is not None and isinstance(callback, kind)]
        if found:
            raise MisconfigurationException(
                f"{type(caller).__name__} does not support {type(found[0]).__name__}: it {what}, and what a task's end "
                "left there (fusion, merge, frozen columns, the model that was scored) would be lost. Remove it from "
                "the trainer's callbacks."
            )


def check_no_finder_resumes(trainer: L.Trainer, restored: bool = False) -> None:
    """Refuse Lightning's finders in a fit that goes on from a checkpoint: their own file takes its place.

    A class of one's own that is derived from theirs may run at another time, and is known by that file alone.

    Args:
        trainer: whose checkpoint is being loaded, or was.
        restored: whether a checkpoint was loaded into the callbacks.

    Raises:
        MisconfigurationException: a finder will load its file, or has loaded it.
    """
    kinds = (lightning_callbacks.LearningRateFinder, lightning_callbacks.BatchSizeFinder)
    has_one = any(type(callback) in kinds for callback in callbacks_of(trainer)) and not is_dev_run(trainer)
    if (has_one and resumed_from(trainer) is not None) or (restored and loaded_by_finder(trainer)):
        raise MisconfigurationException(
            "A finder of Lightning's (LearningRateFinder, BatchSizeFinder) loads a file of its own, and Lightning "
            "leaves out the training state of the checkpoint that the fit goes on from: it would begin at step 0, on "
            "weights that are trained already. Take the finder out of the trainer's callbacks to go on."
        )


def check_begun(trainer: L.Trainer, callbacks: Sequence[TaskCallback]) -> None:
    """Say that a fit goes on from a checkpoint of one without these callbacks, which knew no task.

    Raises:
        MisconfigurationException: it is from within an epoch: the task has begun, and Lightning does not tell it again.
    """
    checkpoint = resumed_from(trainer)
    if checkpoint is None or not callbacks:
        return
    who = ", ".join(type(callback).__name__ for callback in callbacks)
    where = f"{masked_text(checkpoint)} is of a fit without {who}"
    if trainer.fit_loop.restarted_mid_epoch:
        raise MisconfigurationException(
            f"{where}, from within an epoch: the task has begun, and what it began with is not in the checkpoint. "
            "Go on without these callbacks, or begin the task anew with them: a fit without ckpt_path, from the "
            "weights before it."
        )
    stream, epoch = task_stream(trainer), trainer.current_epoch
    within = (
        stream is not None and epoch > 0 and stream.task_at_epoch(epoch - 1).index == stream.task_at_epoch(epoch).index
    )
    if within or (stream is None and trainer.global_step > 0):
        rank_zero_warn(
            f"{where}: its {trainer.global_step} steps count as before the task, which begins here for these callbacks."
        )


def require_automatic_optimization(pl_module: L.LightningModule, caller: object) -> None:
    """Refuse a LightningModule that steps its optimizers itself.

    Raises:
        MisconfigurationException: it does.
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(caller).__name__} needs automatic optimization; {type(pl_module).__name__} sets "
            "automatic_optimization = False."
        )


def require_step_hooks(trainer: L.Trainer, caller: object) -> None:
    """Refuse an optimizer whose step does not call the hooks that torch gives every optimizer.

    Raises:
        MisconfigurationException: there is one: which, and what to do.
    """
    for optimizer in trainer.optimizers:
        kind = type(optimizer)
        if not getattr(kind.step, "hooked", False):  # set by Optimizer.__init__, on the class of the optimizer made
            raise MisconfigurationException(
                f"{type(caller).__name__} acts after every optimizer step, through torch's hooks on the optimizer, and "
                f"{kind.__module__}.{kind.__qualname__}.step does not call them: its constructor leaves out "
                "Optimizer.__init__, as wrappers of another optimizer do (Lookahead). Use the optimizer that it wraps, "
                "or a subclass whose constructor calls torch.optim.Optimizer.__init__(self, params, defaults)."
            )


def required_callback(trainer: L.Trainer, wanted: type, caller: object) -> Any:
    """Return the one callback of type ``wanted``.

    Raises:
        MisconfigurationException: there is none, or more than one.
    """
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, wanted)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"{type(caller).__name__} works with exactly one {wanted.__name__} among the trainer's callbacks; "
            f"found {len(found)}."
        )
    return found[0]
