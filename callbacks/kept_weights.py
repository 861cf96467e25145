"""Notices weights that were kept at a task's end and that something moved afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from hpa_lightning.modules.fsdp import local_tensor
from hpa_lightning.modules.lora import adapters_are_empty
from hpa_lightning.trainer_attributes import callbacks_of

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_HOOKS = ("on_train_epoch_end", "on_train_epoch_start", "on_train_end", "on_fit_end", "on_validation_end")

Digest = dict[str, tuple[torch.dtype, torch.Size, int]]


@torch.no_grad()
def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of this process's rows read as integers, 0-dim int64: the same on every device and in every order."""
    local = local_tensor(tensor)
    return local.contiguous().view(_INTEGERS[local.element_size()]).sum(dtype=torch.int64)


def digest(module: nn.Module) -> Digest:
    """Each floating-point parameter's dtype, shape and bit sum; one pass over the weights, one wait for the device."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.is_floating_point()]
    by_device: dict[torch.device, list[int]] = {}
    for index, (_, parameter) in enumerate(named):
        by_device.setdefault(local_tensor(parameter).device, []).append(index)
    sums: dict[int, int] = {}
    for indices in by_device.values():
        found = torch.stack([bit_sum(named[index][1]) for index in indices]).tolist()
        sums.update(zip(indices, found, strict=True))
    return {name: (p.dtype, p.shape, sums[index]) for index, (name, p) in enumerate(named)}


def check_unmoved(trainer: L.Trainer, pl_module: L.LightningModule, kept: Digest) -> None:
    """Compare the weights with those that were kept at the last task's end; no optimizer has stepped since.

    Parameters that are gone, or were cast or reshaped (an adapter merged by the user, a model in half precision), are
    not compared.

    Raises:
        MisconfigurationException: some have changed: how many, which, and what could have done it.
    """
    now = digest(pl_module)
    moved = [name for name, of in kept.items() if name in now and now[name][:2] == of[:2] and now[name][2] != of[2]]
    if not moved:
        return
    from hpa_lightning.callbacks.task import TaskCallback

    others = [callback for callback in callbacks_of(trainer) if not isinstance(callback, TaskCallback)]
    suspects = [
        type(item).__name__
        for item in (*others, pl_module)
        if any(_overrides(item, hook) for hook in _HOOKS) and not type(item).__module__.startswith("lightning.")
    ]
    raise MisconfigurationException(
        f"{len(moved)} of {len(kept)} parameters ({', '.join(moved[:3])}) differ from those that the task's end left, "
        "and no optimizer has stepped since: other code wrote them, so the fusion or merge at the task's end and the "
        "scores do not belong to this model. "
        + (f"Code that runs there: {', '.join(suspects)}. " if suspects else "")
        + "Remove what writes weights outside the optimizer step (averages of weights, swaps of models); the "
        "checkpoint of the task's end holds the right ones."
    )


@dataclass(frozen=True)
class LeftModel:
    """The model as the last task of a fit left it.

    Args:
        weights: of every parameter.
        merged: whether its adapters were empty, so that the base weights are the model.
    """

    weights: Digest
    merged: bool

    @classmethod
    def of(cls, module: nn.Module, weights: Digest) -> LeftModel:
        return cls(weights, adapters_are_empty(module))

    def differing(self, now: Digest) -> list[str]:
        """Parameters that say that it is another model.

        Parameters that are gone, cast or reshaped are not compared. Where adapters were left filled and base weights
        have changed, the former are taken for merged into the latter.
        """
        moved: dict[str, list[str]] = {"adapter": [], "base": [], "other": []}
        for name, (dtype, shape, bits) in self.weights.items():
            if name in now and now[name][:2] == (dtype, shape) and now[name][2] != bits:
                kind = "adapter" if ".lora_" in name else "base" if ".base_layer." in name else "other"
                moved[kind].append(name)
        if self.merged:
            return moved["other"] + moved["base"]
        return moved["other"] + ([] if moved["base"] else moved["adapter"])


def _overrides(item: object, hook: str) -> bool:
    base = L.LightningModule if isinstance(item, L.LightningModule) else L.Callback
    return getattr(type(item), hook, None) is not getattr(base, hook, None)
