"""Running a user's LightningModule outside its loops without leaving a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection

from hpa_lightning.modules.fsdp import reshard_
from hpa_lightning.modules.mllm import eval_mode

T = TypeVar("T")
_PLAIN = (int, float, str, type(None), Tensor)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and with the random state put back; each submodule's mode is restored."""
    try:
        with eval_mode(module), torch.no_grad(), isolate_rng():
            yield
    finally:
        reshard_(module)  # FSDP2 keeps what a forward without backward has gathered


@contextmanager
def leaving_no_trace(pl_module: L.LightningModule) -> Iterator[None]:
    """Inside, the module's steps may be run; afterwards what they count and average is as it was before.

    That is buffers, torchmetrics, and attributes that are numbers, strings, ``None`` or that tensors were assigned to,
    of every submodule. What a step appends to lists of its own stays, and weights are left alone. ``self.log`` and
    ``self.log_dict`` do nothing inside: outside Lightning's loops they raise.
    """
    plain = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)})
        for module in pl_module.modules()
    ]
    logs = {name: lambda *args, **kwargs: None for name in ("log", "log_dict")}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in pl_module.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    metrics = _metrics(pl_module)
    memo = {id(parameter): parameter for _, _, metric in metrics for parameter in metric.parameters()}
    copies = [copy.deepcopy(metric, memo) for _, _, metric in metrics]
    try:
        pl_module.__dict__.update(logs)
        for (parent, name, _), copied in zip(metrics, copies, strict=True):
            parent._modules[name] = copied
        yield
    finally:
        for name in logs:
            pl_module.__dict__.pop(name, None)
        for parent, name, metric in metrics:
            parent._modules[name] = metric
        for module, values in plain:
            module.__dict__.update(values)
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                module._buffers[name] = buffer


def _metrics(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """The torchmetrics in a module, a collection as one: the module that holds each, its name there, and itself."""
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for name, child in module._modules.items():
        if isinstance(child, (Metric, MetricCollection)):
            found.append((module, name, child))
        elif child is not None:
            found += _metrics(child)
    return found


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


def kept_optimizer(optimizer: Optimizer) -> Callable[[], None]:
    """Copy an optimizer's state and settings; return what puts them back, to the last bit, after any steps.

    ``load_state_dict`` of torch is not used: it casts every state to its parameter's dtype (moments in float32 of
    weights in bfloat16, 8-bit states), so that later steps would be others. An optimizer that has a ``state_dict`` or
    ``load_state_dict`` of its own, as wrappers of another one do, is asked by these.
    """
    kind = type(optimizer)
    if (kind.state_dict, kind.load_state_dict) != (Optimizer.state_dict, Optimizer.load_state_dict):
        saved = copy.deepcopy(optimizer.state_dict())
        return lambda: optimizer.load_state_dict(saved)
    parameters = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    state = copy.deepcopy(dict(optimizer.state), parameters)  # the parameters themselves are not copied
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]

    def put_back() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            for name in group.keys() - before.keys() - {"params"}:
                del group[name]
            group.update(before)

    return put_back
