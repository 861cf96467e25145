"""Several processes in one fit: they hold the same model, masks and data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DistributedSampler, TensorDataset

from hpa_lightning.callbacks.kept_weights import digest
from hpa_lightning.data.resuming import described
from hpa_lightning.modules.fsdp import is_sharded, sums_gradients
from hpa_lightning.values import shown

if TYPE_CHECKING:
    from hpa_lightning.callbacks.task import TaskCallback


_COMPARED = 1000
"""Records in memory that are looked at, evenly over all of them."""


class ProcessesDifferError(RuntimeError):
    """The processes of one fit hold different data, masks or weights; raised on all of them."""


def require_agreement(trainer: L.Trainer, facts: Mapping[str, str]) -> None:
    """Compare facts between all processes, all of which have to call it with the same names.

    Args:
        trainer: of the fit.
        facts: name -> a short text; where it differs between processes they cannot train one model.

    Raises:
        ProcessesDifferError: on every process, naming the first fact that differs and each process's.
    """
    if trainer.world_size == 1:
        return
    everyone: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everyone, dict(facts))
    for name in dict.fromkeys(name for one in everyone for name in one):
        reported = [one.get(name, "nothing") for one in everyone]
        if len(set(reported)) > 1:
            each = ", ".join(f"rank {rank}: {text}" for rank, text in list(enumerate(reported))[:8])
            raise ProcessesDifferError(
                f"the processes differ in {name} ({each}), so they would wait for each other forever or train "
                "different models. Give every process the same files, settings, seed and checkpoint."
            )


def warn_of_summed_gradients(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Say it where FSDP2 sums a module's gradients instead of taking their mean; every process has to call this."""
    if trainer.world_size > 1 and sums_gradients(pl_module):
        rank_zero_warn(
            f"{type(pl_module).__name__} is sharded by fully_shard, and torch {torch.__version__} sums its gradients "
            f"over gloo where it should take their mean: steps and gradient norms are {trainer.world_size} times those "
            "of one process. Call hpa_lightning.modules.mean_gradients_(model) after fully_shard, or use a newer torch."
        )


def rank_zero_mask(trainer: L.Trainer) -> Callable[[Tensor], Tensor] | None:
    """What gives every process rank zero's boolean mask, instead of its own; ``None`` with one process.

    Scores that each process computes by itself may differ in the last bit, and columns of nearly equal scores with it.
    """
    if trainer.world_size == 1:
        return None

    def broadcast(mask: Tensor) -> Tensor:
        sent = mask.to(torch.uint8)
        dist.broadcast(sent, src=0)
        return sent.bool()

    return broadcast


def loader_facts(trainer: L.Trainer) -> dict[str, str]:
    """How much every process is about to train on in this epoch, and of what can be told cheaply, what."""
    facts = {"the number of batches in an epoch": str(trainer.num_training_batches)}
    loader: Any = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__len__"):
        facts["the number of training records"] = str(len(dataset))
    # A sampler that deals one dataset out to all processes; else each may hold a part of its own.
    if isinstance(getattr(loader, "sampler", None), DistributedSampler):
        items = dataset.tensors if isinstance(dataset, TensorDataset) else dataset
        if isinstance(items, list | tuple) and items:
            reported = [described(items[index]) for index in range(0, len(items), -(-len(items) // _COMPARED))]
            facts["the training records"] = hashlib.sha256(repr(reported).encode()).hexdigest()[:12]
    return facts


def settings_facts(settings: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Nested settings and digests, as checkpoints hold them, by dotted name.

    >>> settings_facts({"trainer": {"precision": "32-true"}, "seed": 0})
    {'trainer.precision': '32-true', 'seed': '0'}
    """
    facts: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            facts |= settings_facts(value, f"{path}{key}.")
        else:
            facts[f"{path}{key}"] = shown(value) if not isinstance(value, str) else value
    return facts


def model_facts(pl_module: L.LightningModule, callbacks: Sequence[TaskCallback]) -> dict[str, str]:
    """What a mask or a weight looks like; sharded parameters, of which every process holds others, are left out."""
    facts = {}
    for callback in callbacks:
        masks = getattr(callback, "retained", None)
        if isinstance(masks, Mapping):
            content = hashlib.sha256()
            for name in sorted(masks):
                content.update(name.encode() + masks[name].cpu().numpy().tobytes())
            facts[f"the mask of {type(callback).__name__}"] = content.hexdigest()[:12]
    if not is_sharded(pl_module):
        weights = hashlib.sha256(repr(sorted(digest(pl_module).items(), key=lambda item: item[0])).encode())
        facts["the weights"] = weights.hexdigest()[:12]
    return facts
