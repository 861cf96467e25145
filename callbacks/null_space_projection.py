"""NullSpaceProjection: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.hessian_memory import Form, HessianMemory
from hpa_lightning.callbacks.optimizer_step import StepCallback
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.tasks import Data
from hpa_lightning.modules.fsdp import cpu_state, local_tensor


class NullSpaceProjection(StepCallback):
    """Keeps every update out of the subspace of the safety inputs and of the earlier tasks' inputs.

    At a task's start the safety inputs are gathered from the model as it is then; for each layer the directions ``U``
    are taken that hold ``energy`` of the trace of ``safety_weight H_s + memory_weight sum_{i<t} H_i``. From then on the
    update is projected after every optimizer step, ``D <- D (I - U U^T)``: what the layer does to inputs along ``U``
    does not change, and training goes around them. With LoRA that is exactly ``A <- A (I - U U^T)``.

    With ``form="sketch"`` the Hessians are sketches of ``rank`` rows (Frequent Directions): no ``c x c`` matrix is
    formed. What an update
    ``D`` that leaves ``U`` does to all inputs ``X`` behind them is bounded by the sketch: ``||X D^T||_F^2 <=
    (sigma_{k+1}^2 + Delta) ||D||_F^2``, with the sketch's singular values and ``Delta <= ||X - X_j||_F^2 / (rank + 1 -
    j)`` for every ``j <= rank`` (Ghashami et al., Frequent Directions, SIAM J. Comput. 2016, theorem 1.1; rounding to
    bfloat16 is counted in ``Delta``; ``InputSketch.worst_case`` says how much it is). Where the spectrum decays slowly
    and the rank is small, ``Delta`` is large, and a warning names the layers.

    Hooks: task start, the optimizer's step post-hook, task end (the task's Hessian, before adapters are merged).
    State: the bases, the weights before the task (full-parameter tuning only), the earlier tasks' Hessians or sketches,
    the safety calibration set; of LLaMA-7B sketches and bases at most 0.6 GB at rank 192.
    Strategies: one device, DDP, FSDP2.
    Source: gradient projection memory (Saha et al., ICLR 2021) on HPA's calibration sets; projecting the weights'
    update instead of the gradient is this project's, since Adam's step leaves the subspace.

    Args:
        energy: share of the trace that is kept from changing, in [0, 1].
        safety_weight: weight of the safety inputs; 0 leaves them out.
        memory_weight: weight of each earlier task's inputs; 0 remembers none.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        form: ``"exact"`` for whole Hessians and eigendecompositions (22 GB for LLaMA-7B), or ``"sketch"``.
        rank: rows of a sketch, and the most directions that are kept of one input; 192 rows of all inputs of LLaMA-7B
            and as many directions are 0.9 GB in memory.
        earlier_tasks: with ``form="sketch"``, a file of tasks that were learnt before this fit, which
            ``save_memory`` or ``hpa-lightning fuse --save-memory`` has written; they are protected as those of the fit.
        save_memory: with ``form="sketch"``, a file to be written after every task, for a later fit or fusion.

    Raises:
        ValueError: a share outside [0, 1], a weight that is negative or not finite, or a file without
            ``form="sketch"``.

    Example:
        >>> from hpa_lightning.callbacks import NullSpaceProjection, SequentialTuning
        >>> callbacks = [SequentialTuning(), NullSpaceProjection(energy=0.7)]    # of a Trainer, over a stream of tasks
    """

    start_order: ClassVar[int] = StartPhase.SUBSPACE
    end_order: ClassVar[int] = EndPhase.FUSING

    def __init__(
        self,
        energy: float = 0.7,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        form: Form = "exact",
        rank: int = 192,
        earlier_tasks: str | Path | None = None,
        save_memory: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self, blocks, target_modules))
        self.calibrator = self.own(Calibrator(self.layers, safety_data, task_data, calibration))
        self.memory = self.own(
            HessianMemory(self.calibrator, safety_weight, memory_weight, form, rank, earlier_tasks, save_memory)
        )
        self.blocks, self.target_modules = blocks, target_modules
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.safety_weight, self.memory_weight = safety_weight, memory_weight
        if not 0.0 <= energy <= 1.0:
            raise ValueError(f"energy is {energy}; expected a share of the trace in [0, 1].")
        self.energy = energy
        self.form, self.rank = form, rank
        self.earlier_tasks, self.save_memory = earlier_tasks, save_memory
        self._bases: dict[str, Tensor] = {}
        self._turns: dict[str, Tensor] = {}  # basis @ turn is its bfloat16 copy
        self._first: dict[str, str] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.layers.find(pl_module)
            self.layers.keep_weights()
            batches = self.calibrator.safety_batches(trainer, pl_module)
            safety, self._first = self.memory.gather(trainer, pl_module, batches, "safety")
            short: list[str] = []
            for name in safety:
                kept = self.memory.kept(name, safety[name]).to(pl_module.device)
                if isinstance(kept, Tensor):
                    basis = F.dominant_subspace(kept, self.energy)
                else:
                    basis = kept.basis(self.energy, self.rank)
                    if not kept.is_zero and kept.held(basis.shape[1]) < 0.5 * self.energy:
                        short.append(name)
                # What a rank computes by itself may differ in the last bit from what another one does.
                self._bases[name] = trainer.strategy.broadcast(basis)
                if self.form == "sketch":
                    self._bases[name], self._turns[name] = F.half_precision_basis(self._bases[name])
                    self._bases[name] = self._bases[name].to(pl_module.device)
        if short:
            rank_zero_warn(
                f"NullSpaceProjection: with rank={self.rank} the directions kept certainly hold less than half of "
                f"energy={self.energy} of the inputs of {len(short)} of {len(self._bases)} layers "
                f"({', '.join(short[:3])}{', ...' if short[3:] else ''}). Set a larger rank."
            )
        held, all_of_them = (sum(basis.shape[side] for basis in self._bases.values()) for side in (1, 0))
        rank_zero_info(f"Task {task.index} ({task.name}): {held} of {all_of_them} input directions are kept.")
        self.after_step(trainer, pl_module)
        super().on_task_start(trainer, pl_module, task)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.resume(pl_module)
        missing = [linear.name for linear in self.layers if self._first.get(linear.name) not in self._bases]
        if missing:
            raise ValueError(
                f"the checkpoint holds no basis for {missing[:3]}; it was written while other layers were tuned."
            )
        self._bases = self.layers.on_devices(self._bases)
        super().on_task_resume(trainer, pl_module, task)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for linear in self.layers:
            basis = self._bases[self._first[linear.name]]
            F.null_space_projection_(local_tensor(linear.trained), linear.origin(), basis)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        super().on_task_end(trainer, pl_module, task)
        if self.memory_weight > 0:
            with self.timed(trainer, task.index, "calibrate"):
                batches = self.calibrator.task_batches(trainer, task)
                tasks, first = self.memory.gather(trainer, pl_module, batches, "task")
            self.memory.remember(trainer, pl_module, task, tasks, first)
        self._bases, self._turns, self._first = {}, {}, {}
        self.layers.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bases": cpu_state(self._bases) | {name: self._half(name) for name in self._turns},
            "first": dict(self._first),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._bases, self._turns = dict(state_dict["bases"]), {}
        for name, basis in self._bases.items():
            if basis.dtype == torch.bfloat16:  # the exact form saves float32
                self._bases[name], self._turns[name] = F.half_precision_basis(basis)
        self._first = dict(state_dict["first"])

    def _half(self, name: str) -> Tensor:
        """The bfloat16 matrix that a basis was made of."""
        return (self._bases[name].cpu() @ self._turns[name]).to(torch.bfloat16)
