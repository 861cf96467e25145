"""What the callbacks refuse in a Trainer, by name, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from hpa_lightning.callbacks.task import TaskCallback


def check_strategy(strategy: Strategy, asker: TaskCallback) -> None:
    """Refuse a strategy under which the callback's promises would not hold.

    Raises:
        MisconfigurationException: the strategy is not supported; the reason is given.
    """
    name, kind = type(asker).__name__, type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy):
        parallel = strategy.device_mesh["tensor_parallel"].size()
        if asker.refuses_sharding is None and parallel == 1:
            return
        pieces = f"tensor_parallel_size is {parallel}, and columns cut in pieces cannot be addressed; set it to 1"
        reason = asker.refuses_sharding or pieces
    elif isinstance(strategy, DeepSpeedStrategy):
        reason = (
            "DeepSpeed steps on fp32 copies of the weights that it keeps for itself and that overwrite what a callback "
            "writes into the model, and it builds its optimizer once, not for every task"
        )
    elif isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        return
    elif isinstance(strategy, FSDPStrategy):
        reason = "FSDP1 flattens the parameters, which then have no columns"
    else:
        reason = "it is none of those that the callbacks were tested with"
    raise MisconfigurationException(
        f"{name} does not support {kind}: {reason}. Supported are one device, strategy='ddp'"
        + ("." if asker.refuses_sharding else ", and FSDP2 (ModelParallelStrategy with tensor_parallel_size=1).")
    )


_WRITERS = {
    "WeightAveraging": "puts its average in the place of the weights at the end of the fit, and into checkpoints",
    "StochasticWeightAveraging": "puts its average in the place of the weights at the end of the fit",
    "ModelPruning": "takes the weights out of the layers and writes them anew before every forward pass",
}
"""Lightning's callbacks that write weights outside the optimizer step; their subclasses do too."""


def check_weight_writers(trainer: L.Trainer, asker: TaskCallback) -> None:
    """Refuse Lightning's callbacks that write weights outside the optimizer step.

    Those of others are noticed when they do it (:func:`hpa_lightning.callbacks.kept_weights.check_unmoved`).

    Raises:
        MisconfigurationException: the trainer has one; what it does.
    """
    for name, what in _WRITERS.items():
        kind = getattr(lightning_callbacks, name, None)  # not in every supported version of Lightning
        found = [callback for callback in trainer.callbacks if kind is not None and isinstance(callback, kind)]
        if found:
            raise MisconfigurationException(
                f"{type(asker).__name__} does not support {type(found[0]).__name__}: it {what}, and what a task's end "
                "left there (fusion, merge, frozen columns, the model that was scored) would be lost. Remove it from "
                "the trainer's callbacks."
            )


def require_automatic_optimization(pl_module: L.LightningModule, asker: object) -> None:
    """Refuse a LightningModule that steps its optimizers itself.

    Raises:
        MisconfigurationException: it does.
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(asker).__name__} needs automatic optimization; {type(pl_module).__name__} sets "
            "automatic_optimization = False."
        )
