"""Stops a training that has diverged at the step where it happens, by the name of the parameter."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from hpa_lightning.modules.fsdp import local_tensor
from hpa_lightning.modules.lora import PLAIN_DTYPES
from hpa_lightning.values import first_of

_SHOWN = 3


class TrainingDivergedError(RuntimeError):
    """The loss, a gradient or a weight is NaN or infinite."""


class DivergenceWatch:
    """Looks at every loss and, before every optimizer step, at every gradient.

    On the CPU it raises before the step, with the weights as they were. On a GPU what was found is copied to the host
    beside the optimizer step and looked at when the batch ends, before checkpoints are written: the host waits for the
    backward pass, never for the step. With fp16 mixed precision a gradient that overflows is legal, since the scaler
    skips the step; only the loss counts then. Several processes agree on what they found, and all of them stop.
    """

    def __init__(self) -> None:
        self._bad: Tensor | None = None  # 0-dim boolean: something since the last optimizer step was not finite
        self._on_host: tuple[Tensor, torch.cuda.Event] | None = None

    @torch.no_grad()
    def check_loss(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """To be called with each micro-batch's loss, before the backward pass."""
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad
        if trainer.world_size == 1 and bad.device.type != "cuda":
            self._raise_if(self._bad, trainer, pl_module)

    @torch.no_grad()
    def check_gradients(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """To be called before each optimizer step, when the gradients are complete."""
        bad = self._bad
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            size = largest(parameter.grad for parameter in parameters if parameter.grad is not None)
            if size is not None:
                found = ~torch.isfinite(size)
                bad = found if bad is None else found | bad.to(found.device)
        if bad is None:
            return
        if trainer.world_size > 1:
            bad = bad.to(torch.uint8)
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        self._bad = None
        if bad.device.type != "cuda":
            self._raise_if(bad, trainer, pl_module)
            return
        host = torch.empty((), dtype=bad.dtype, pin_memory=True)
        host.copy_(bad, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(bad.device))
        self._on_host = host, event

    def check_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """To be called at each batch's end, before checkpoints are written."""
        if self._on_host is not None:
            host, event = self._on_host
            self._on_host = None
            event.synchronize()
            self._raise_if(host, trainer, pl_module)

    def check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """To be called at a task's end, before anything is made of the trained weights."""
        size = largest(parameter.detach() for parameter in pl_module.parameters() if parameter.requires_grad)
        bad = torch.zeros((), dtype=torch.bool, device=pl_module.device) if size is None else ~torch.isfinite(size)
        if trainer.world_size > 1:
            bad = bad.to(pl_module.device, torch.uint8)
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        self._raise_if(bad, trainer, pl_module)

    def _raise_if(self, bad: Tensor, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not bool(bad):
            return
        self._bad = None
        named = list(pl_module.named_parameters())
        weights = [name for name, parameter in named if not is_finite(parameter.detach())]
        gradients = [name for name, p in named if p.grad is not None and not is_finite(p.grad)]
        if weights:
            what = f"the weights of {first_of(weights, _SHOWN)} are not finite"
        elif gradients:
            what = f"the gradients of {first_of(gradients, _SHOWN)} are not finite"
        else:
            size = largest(parameter.detach() for _, parameter in named)
            what = (
                "the loss is not finite, and all weights are"
                + ("" if size is None else f" (the largest is {float(size):.3g})")
                + ": look at the batch and at the loss function"
            )
        raise TrainingDivergedError(
            f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx}): {what}. "
            "The training has diverged. Resume from an earlier checkpoint with a lower learning rate, a warm-up or "
            "gradient_clip_val; with 16-bit weights, train in bf16-mixed or 32-true."
        )


def warn_of_frozen(pl_module: L.LightningModule) -> None:
    """Warn of weights that are not trained and not finite; what is trained is checked when it changes.

    They may be rows of tokens that nothing uses. Where they are used, the loss or a calibration is not finite.
    """
    frozen = [(name, parameter) for name, parameter in pl_module.named_parameters() if not parameter.requires_grad]
    bad = [name for name, parameter in frozen if parameter.dtype in PLAIN_DTYPES and not is_finite(parameter.detach())]
    if bad:
        rank_zero_warn(
            f"the weights of {first_of(bad, _SHOWN)}, which are not trained, hold values that are not finite from the "
            "start. The model's file is damaged, or the model was saved after it had diverged; take another one."
        )


def largest(tensors: Iterable[Tensor]) -> Tensor | None:
    """The largest absolute value in this process's rows of all ``tensors``, 0-dim on their device; NaN if one is."""
    found = [_values(tensor) for tensor in tensors if tensor.is_floating_point()]
    found = [tensor for tensor in found if tensor.numel()]
    return torch.nn.utils.get_total_norm(found, float("inf")) if found else None


def is_finite(tensor: Tensor) -> bool:
    """Whether this process's rows hold neither NaN nor an infinity."""
    size = largest([tensor])
    return size is None or bool(torch.isfinite(size))


def check_finite(tensors: Iterable[tuple[str, Tensor | nn.Parameter]], made_by: str) -> None:
    """Refuse weights that a method has made.

    Raises:
        TrainingDivergedError: some are not finite; their names.
    """
    bad = [name for name, tensor in tensors if not is_finite(tensor.detach())]
    if bad:
        raise TrainingDivergedError(
            f"{made_by} produced weights that are not finite, in {first_of(bad, _SHOWN)}, from finite ones; check the "
            "calibration "
            "data and the layer's inputs."
        )


def _values(tensor: Tensor) -> Tensor:
    local = local_tensor(tensor)
    return local.coalesce().values() if local.is_sparse else local
