"""Running a user's LightningModule outside its loops without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader

from hpa_lightning.modules.fsdp import reshard_
from hpa_lightning.modules.mllm import eval_mode

T = TypeVar("T")


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and with the random state put back; each submodule's mode is restored."""
    try:
        with eval_mode(module), torch.no_grad(), isolate_rng():
            yield
    finally:
        reshard_(module)  # FSDP2 keeps what a forward without backward has gathered


@contextmanager
def muted_logging(pl_module: L.LightningModule) -> Iterator[None]:
    """Make ``self.log`` and ``self.log_dict`` do nothing: outside Lightning's loops they raise."""
    names = ("log", "log_dict")
    for name in names:
        pl_module.__dict__[name] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for name in names:
            pl_module.__dict__.pop(name, None)


def forward_context(trainer: L.Trainer) -> AbstractContextManager[Any]:
    """The precision plugin's context for a forward pass (autocast in mixed precision)."""
    return trainer.precision_plugin.forward_context()


def to_device(trainer: L.Trainer, batch: Any) -> Any:
    """Move a batch: the precision's conversion, then the transfer hooks."""
    return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def to_device_as_trained(trainer: L.Trainer, batch: Any) -> Any:
    """Move a training batch as the fit loop does: unlike :func:`to_device` with ``on_before_batch_transfer``."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch)


def local_share(loader: Iterable[Any], trainer: L.Trainer) -> Iterable[Any]:
    """This process's batches of a loader that is the same on every process; each batch belongs to one of them."""
    if trainer.world_size == 1:
        return loader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return islice(loader, trainer.global_rank, None, trainer.world_size)
    return DataLoader(
        loader.dataset,
        batch_sampler=list(loader.batch_sampler)[trainer.global_rank :: trainer.world_size],
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


def in_lockstep(loader: Iterable[Any], trainer: L.Trainer, device: torch.device) -> Iterator[tuple[Any, bool]]:
    """This process's share of a loader that is the same on every process, as long as any process has some of it.

    Sharded models need it: every process has to take part in every forward pass.

    Returns:
        Each batch, and whether it counts; one that does not is there to keep the processes in step.
    """
    share, filler = iter(local_share(loader, trainer)), None
    while True:
        batch = next(share, None)
        busy = trainer.strategy.reduce(torch.tensor(float(batch is not None), device=device), reduce_op="sum")
        if not busy:
            return
        if batch is not None:
            filler = batch
        elif filler is None:
            filler = next(iter(loader))
        yield filler, batch is not None


def counted(share: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each batch with ``True``: all of them count, see :func:`in_lockstep`."""
    return ((batch, True) for batch in share)


@contextmanager
def on_its_device(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """The model where it was trained: before ``on_fit_end`` Lightning has moved it to the CPU."""
    before = pl_module.device
    pl_module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        pl_module.to(before)
