"""The part of a callback that bounds how much less likely the refusals of the calibration set become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hpa_lightning.calibration import DummyBatch
from hpa_lightning.callbacks.batches import batch_length, children, run_training_step
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.output_budget import OutputBudget
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.running import evaluation_mode, forward_context, leaving_no_trace
from hpa_lightning.modules.fsdp import local_tensor

_HALVINGS = 7
"""Of the interval in which the bound is sought: between a 64th and all of what the layers change now."""
_RELAXED = 1.25
"""How much the bound is widened where the refusals have lost less than half of what they may."""
_FLOOR = 1e-4
"""Share of the layers' outputs from which a smaller bound is widened: one of 0 would stay 0."""
_FEW = 32
"""Samples of the calibration set that are measured within a task; all of them at its end."""


class RefusalBudget(Part):
    """Tightens the bound of :class:`OutputBudget` so that the refusals' loss rises by at most a budget in a task.

    The loss is the module's own on the safety calibration set (nats for each token of the refusals, as the aligned
    model gave them): a budget of 0.05 lets the probability of a refusal's token fall by 5 % in the geometric mean. It
    is measured every ``every`` optimizer steps on the first 32 samples (the batches that hold them), and at the task's
    end on all; within a task always on the same ones, also where the data are shuffled. Where it has risen by more, the
    widest bound on the layers' outputs that keeps to the budget is found by bisection on the update as it is, one
    forward pass over the same samples each; that bound is kept from then on, and widened again, up to the one that the
    layers' outputs have by themselves, where less than half of the budget is used.

    State: ``"refusal_loss"``, at the task's start: on the first samples, and on all; ``"refusal_batches"``, by which
    those samples are known again.

    Args:
        output: whose bound is set.
        calibrator: of the calibration set.
        rise: the budget, in nats for each token.
        every: optimizer steps between two measurements.
    """

    def __init__(self, output: OutputBudget, calibrator: Calibrator, rise: float, every: int = 20) -> None:
        super().__init__(output.owner)
        self.output = output
        self.calibrator = calibrator
        self.rise = rise
        self.follows = {"budget" if output.budget == math.inf else "refusal_budget": "rise"}
        self.every = every
        self.rose = math.nan
        """What the refusals' loss had risen by when it was last measured, nats for each token."""
        self._start = (math.nan, math.nan)  # on few samples, and on all
        self._batches: list[Any] = []  # of the task
        self._few = 0  # how many of them hold the first samples
        self._known_by: list[float] | None = None
        self._measured_at = -1
        self._warned = False

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Sequence[Any]) -> None:
        """Measure the refusals before the task, on this process's share of the safety batches."""
        self._keep(trainer, batches)
        self._known_by = _fingerprint(batches)
        self._start = self.loss(trainer, pl_module), self.loss(trainer, pl_module, whole=True)

    def resume(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the samples again that were measured before the task; where others come, measure those anew."""
        self._keep(trainer, self.calibrator.safety_batches(trainer, pl_module))
        same = self._known_by is None or self._known_by == _fingerprint(self._batches)
        if trainer.strategy.broadcast(same):  # a checkpoint holds what rank zero's are known by
            return
        rank_zero_warn(
            f"{self.caller}: the safety data give other samples than before the fit was interrupted, as a loader that "
            "shuffles does. The loss of the refusals before the task is measured anew on them, with the weights of the "
            "treated layers from then and all others as they are now."
        )
        with ExitStack() as before:
            for linear in self.output.layers:
                before.enter_context(linear.restored())
            self.begin(trainer, pl_module, self._batches)

    def clear(self) -> None:
        """Let go of a task's samples."""
        self._batches = []

    def check_(self, trainer: L.Trainer, pl_module: L.LightningModule, last: bool = False) -> None:
        """Measure, where it is time, and set the bound; ``last``: at the task's end."""
        step = trainer.global_step
        if not last and (step == self._measured_at or step % self.every != 0):
            return
        self._measured_at = step
        start = self._start[last]
        allowed = start + self.rise
        loss = self.loss(trainer, pl_module, last)
        self.rose = loss - start
        if loss <= allowed:
            if loss < start + 0.5 * self.rise and not last:
                widened = max(self.output.change, _FLOOR) * _RELAXED
                self.output.change = min(widened, self.output.allowed(trainer))
            return
        trained = [local_tensor(linear.trained) for linear in self.output.layers]
        update = [tensor.detach().clone() for tensor in trained]
        left = self.output.left
        low, high = math.nan, max(share["change"] for share in self.output.shares().values())
        bounds = [high / 64.0, high]
        for _ in range(_HALVINGS):
            tried = math.sqrt(bounds[0] * bounds[1])
            self._restore(trained, update, left)
            self.output.change = tried
            self.output.keep_(trainer)
            met = self.loss(trainer, pl_module, last) <= allowed
            bounds[0 if met else 1] = tried
            low = tried if met else low
        self._restore(trained, update, left)
        self.output.change = 0.0 if math.isnan(low) else low
        self.output.keep_(trainer)
        self.rose = self.loss(trainer, pl_module, last) - start
        if math.isnan(low) and self.rose > self.rise and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{self.caller}: the loss of the refusals rose by {self.rose:.3g} of {self.rise:g} allowed, and would "
                "although no treated layer's output on them changed: something else that is trained, or positions that "
                "count in the loss and not in the calibration, moves it. Freeze what is not treated."
            )

    @torch.no_grad()
    def loss(self, trainer: L.Trainer, pl_module: L.LightningModule, whole: bool = False) -> float:
        """The module's mean loss over the safety calibration set of all processes, or over its first samples."""
        sums = torch.zeros(2, dtype=torch.float64, device=pl_module.device)
        batches = self._batches if whole else self._batches[: self._few]
        with evaluation_mode(pl_module), leaving_no_trace(pl_module), forward_context(trainer):
            for batch in batches:
                counted = not isinstance(batch, DummyBatch)
                batch = batch if counted else batch.batch
                out = run_training_step(pl_module, batch)
                loss = out["loss"] if isinstance(out, Mapping) else out
                if counted:
                    sums += torch.stack([loss.detach().double(), torch.ones_like(sums[0])]) * batch_length(batch)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def _keep(self, trainer: L.Trainer, batches: Sequence[Any]) -> None:
        """Keep the batches of a task, and how many of each process hold the first samples: equally many on all."""
        self._batches = list(batches)
        lengths = [0 if isinstance(batch, DummyBatch) else batch_length(batch) for batch in batches]
        device = trainer.strategy.root_device
        held = trainer.strategy.reduce(torch.tensor(lengths, dtype=torch.float32, device=device), reduce_op="sum")
        self._few = min(int((held.cumsum(0) < _FEW).sum()) + 1, len(lengths))

    @torch.no_grad()
    def _restore(self, trained: Sequence[Tensor], update: Sequence[Tensor], left: Tensor) -> None:
        for tensor, saved in zip(trained, update, strict=True):
            tensor.copy_(saved)
        self.output.left = left

    def state_dict(self) -> dict[str, Any]:
        return {"refusal_loss": self._start, "refusal_batches": self._known_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["refusal_loss"]
        self._known_by = state_dict.get("refusal_batches")


def _fingerprint(batches: Sequence[Any]) -> list[float]:
    """The sums of all tensors, one after the other: other samples, or another order, have others."""

    def sums(value: Any) -> list[float]:
        if isinstance(value, Tensor):
            return [float(value.double().sum())]
        return [found for _, part in children(value) for found in sums(part)]

    return [found for batch in batches for found in sums(batch)]
