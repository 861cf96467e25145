"""Answers during a fit, a test or a prediction in mixed precision are computed in mixed precision, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerStatus

from hpa_lightning.modules.emulated_bfloat16 import products_of
from hpa_lightning.modules.fsdp import is_sharded


@contextmanager
def mixed_answers(pl_module: L.LightningModule) -> Iterator[None]:
    """Autocast as the running trainer's steps have it, without gradients; other precisions need none.

    Lightning enters autocast for its own steps alone. A callback that asks for answers in a fit would otherwise get
    them in fp32: slower, and not those of ``Trainer.test``. Every weight is rounded once within the context, and not
    for every token: Lightning turns PyTorch's memory of rounded weights off, and that knows only weights that say that
    they require a gradient.

    Args:
        pl_module: with or without a trainer.
    """
    trainer = pl_module._trainer
    running = trainer is not None and trainer.state.status == TrainerStatus.RUNNING
    plugin = trainer.precision_plugin if trainer is not None and running else None
    if not isinstance(plugin, MixedPrecision):
        with products_of(plugin):
            yield
        return
    frozen = [] if is_sharded(pl_module) else [one for one in pl_module.parameters() if _is_cast(one)]
    dtype = torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.half
    with torch.no_grad(), products_of(plugin), torch.autocast(plugin.device, dtype, cache_enabled=True):
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def _is_cast(parameter: torch.nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and not parameter.requires_grad
