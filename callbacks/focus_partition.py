"""FocusPartition: which columns the in-training mode retains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.batches import run_training_step, training_batches
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import StartPhase
from hpa_lightning.callbacks.processes import rank_zero_mask
from hpa_lightning.callbacks.retention_audit import audit_of, random_columns, record_audit
from hpa_lightning.callbacks.running import kept_optimizer, leaving_no_trace, to_device_as_trained
from hpa_lightning.callbacks.safety_data import settings_of
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.needs import task_stream
from hpa_lightning.data.tasks import Data
from hpa_lightning.modules.emulated_bfloat16 import products_of
from hpa_lightning.modules.fsdp import cpu_state, is_sharded
from hpa_lightning.modules.token_weights import TokenWeightedModule
from hpa_lightning.trainer_attributes import callbacks_of, datamodule_of

_SMALLEST_SCALE = 1e-3
"""Of a loss in float16: gradients that overflow at less are not finite at all."""


class FocusPartition(TaskCallback):
    """Partitions the columns of every tuned linear layer at a task's start and selects those to retain.

    Safety and task Hessians come from the model at the task's start. The update does not exist yet then; it is probed:
    ``probe_steps`` ordinary optimizer steps on the task's first batches, after which weights, optimizer and random
    state are put back exactly (decision; the paper's method works after training, see :class:`HarmoniousFusion`).
    The masks are used by :class:`MaskedFreezing` and the anchors also by :class:`OrthogonalProjection`; on its own
    this callback changes nothing and only reports, which a warning says. A callback of one's own that uses the masks
    sets ``uses_partition = True``.

    Hooks: task start. State: masks, the weights before the task (full-parameter tuning only), the safety calibration
    set. Strategies: one device; DDP and FSDP2 (the ranks share the calibration, rank zero's masks are used).
    Source: HPA (arXiv 2511.20158), focusing-based partition and balanced selection.

    Args:
        probe_steps: optimizer steps of the probe.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        retention: shares and weights, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Raises:
        ValueError: settings that are none, ``units="rows"``, or no steps.

    Example:
        >>> from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, OrthogonalProjection
        >>> partition = FocusPartition(probe_steps=8, retention={"p_min": 20.0, "p_max": 60.0})
        >>> callbacks = [partition, MaskedFreezing(), OrthogonalProjection()]    # in-training HPA

    Attributes:
        layers: the tuned linear layers, with their weights before the task.
        retained: name -> boolean ``(in_features,)`` on the weight's device; True keeps the old column.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING

    def __init__(
        self,
        probe_steps: int = 8,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        retention: F.RetentionSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self, blocks, target_modules))
        self.calibrator = self.own(Calibrator(self.layers, safety_data, task_data, calibration))
        self.blocks, self.target_modules = blocks, target_modules
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.retention = settings_of(F.RetentionSettings, retention, "retention")
        if self.retention.units != "columns":
            raise ValueError(
                f"retention.units is {self.retention.units!r}; training freezes input columns alone. Use "
                "HarmoniousFusion for output rows."
            )
        if probe_steps < 1:
            raise ValueError(f"probe_steps is {probe_steps}; expected at least 1, or there is no update to partition.")
        self.probe_steps = probe_steps
        self.retained: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not any(getattr(callback, "uses_partition", False) for callback in callbacks_of(trainer)):
            rank_zero_warn(
                "FocusPartition only measures: it selects columns, and none of the trainer's callbacks protects them. "
                "Add MaskedFreezing() and OrthogonalProjection() for in-training HPA, or leave it alone to look at the "
                "partition."
            )

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.layers.find(pl_module)
            self.layers.keep_weights()
            safety = self.calibrator.safety_diagonals(trainer, pl_module)
            tasks = self.calibrator.task_diagonals(trainer, pl_module, task)
            with self._probed(trainer, pl_module):
                audit = self._select(trainer, task, safety, tasks)
            record_audit(self, trainer, task, audit)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.resume(pl_module)
        self.retained = self.layers.restored(self.retained, "column mask")

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.retained = {}
        self.layers.clear()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "retained": cpu_state(self.retained)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.retained = dict(state_dict["retained"])

    def _select(
        self, trainer: L.Trainer, task: CurrentTask, safety: Mapping[str, Tensor], tasks: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Select every layer's columns from the update that the probe has made; return the audit."""
        self.retained, audit = {}, []
        broadcast = rank_zero_mask(trainer) or (lambda mask: mask)
        for linear in self.layers:
            name = linear.name
            mask, entry = F.focus_partition(
                linear.update(),
                safety[name],
                tasks[name],
                linear.layer,
                len(self.layers.block_modules),
                self.retention,
                random_columns(self.retention, task, linear),
            )
            self.retained[name] = broadcast(mask)
            audit.append(audit_of(task, linear, entry))
        return audit

    @contextmanager
    def _probed(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
        """The model after a few optimizer steps; everything is as before afterwards, whatever happens inside."""
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        weights = [parameter.detach().clone() for parameter in trained]
        optimizers = [kept_optimizer(optimizer) for optimizer in trainer.optimizers]
        try:
            with isolate_rng(), leaving_no_trace(pl_module):
                loss = self._probe(trainer, pl_module)
                rank_zero_info(f"Probed the update with {self.probe_steps} optimizer steps (last loss {loss:.4f}).")
            with torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(trained, weights, strict=True):
                    parameter.copy_(weight)
                    parameter.grad = None
            for put_back in optimizers:
                put_back()

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float:
        (optimizer,) = trainer.optimizers
        if isinstance(optimizer, torch.optim.LBFGS):
            raise MisconfigurationException(
                "FocusPartition's probe takes ordinary optimizer steps, one gradient each; LBFGS computes several. Use "
                "another optimizer, or HarmoniousFusion, which needs no probe."
            )
        for group in optimizer.param_groups:
            # A warm-up schedule starts at rate 0; the probe steps at the rate the schedule was built from.
            group["lr"] = group.get("initial_lr", group["lr"])
        datamodule = datamodule_of(trainer) if task_stream(trainer) is not None else None
        # Either loader gives this process its own share, as training gets it.
        loader = datamodule.train_dataloader() if datamodule is not None else training_batches(trainer)
        batches = cycle_batches(loader)
        average = trainer.world_size > 1 and not is_sharded(pl_module)
        # In fp16 small gradients are 0 without the loss scale that training has.
        scaler = copy.deepcopy(getattr(trainer.precision_plugin, "scaler", None))
        step = 0
        while step < self.probe_steps:
            optimizer.zero_grad()
            for _ in range(trainer.accumulate_grad_batches):
                with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                    output = run_training_step(pl_module, to_device_as_trained(trainer, next(batches)), step)
                loss = cast(Tensor, output["loss"] if isinstance(output, Mapping) else output)
                if not torch.isfinite(loss):
                    raise ValueError(f"the probe's loss is {float(loss)} at step {step}; expected a finite loss.")
                share = loss / trainer.accumulate_grad_batches
                with products_of(trainer.precision_plugin):
                    pl_module.backward(share if scaler is None else scaler.scale(share))
            if average:  # the module is called without the wrapper that does it
                for parameter in pl_module.parameters():
                    if parameter.grad is not None:
                        parameter.grad.copy_(trainer.strategy.reduce(parameter.grad, reduce_op="mean"))
            if isinstance(pl_module, TokenWeightedModule):
                pl_module.finish_gradients_(optimizer)
            if scaler is not None and not getattr(optimizer, "_step_supports_amp_scaling", False):
                scaler.unscale_(optimizer)
            # A module's own clipping, too; without one and without a value it does nothing.
            pl_module.configure_gradient_clipping(
                optimizer,
                gradient_clip_val=trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
            step += _stepped(optimizer, scaler)
        return float(loss.detach())


def _stepped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> bool:
    """Take a step; with a loss scale whether it was taken, which it is not where gradients overflowed.

    Raises:
        ValueError: they do at the smallest scale.
    """
    if scaler is None:
        optimizer.step()
        return True
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < scale < _SMALLEST_SCALE:
        raise ValueError(
            f"the probe's gradients overflow in float16 at a loss scale of {scale:g}; train in bf16-mixed or 32-true."
        )
    return bool(scaler.get_scale() >= scale)


def cycle_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches, again from the start when they are used up.

    Raises:
        ValueError: the loader is empty.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("the training data are empty; expected at least one batch.")
