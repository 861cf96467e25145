"""NullSpaceProjection: an improvement beyond the paper, off unless it is attached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
from hpa_lightning.callbacks.output_budget import OutputBudget
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.protected_share import DEFAULT_SAFETY_SAMPLES, ProtectedShare, Share
from hpa_lightning.callbacks.refusal_budget import RefusalBudget
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.tasks import Data
from hpa_lightning.functional import InputSketch
from hpa_lightning.modules.fsdp import cpu_state, local_tensor
from hpa_lightning.results.events import ProtectionEvent
from hpa_lightning.trainer_attributes import log_metrics

_HARDLY_ANY = 1e-3
"""Share of all input directions; a task on `nano` leaves a few hundredths."""


class NullSpaceProjection(StepCallback):
    """Keeps every update out of the subspace of the safety inputs and of the earlier tasks' inputs.

    At a task's start the safety inputs are gathered from the model as it is then. From then on the update is projected
    after every optimizer step, ``D <- D (I - U U^T)``: what the layer does to inputs along the directions ``U`` does
    not change, and training goes around them. With LoRA that is exactly ``A <- A (I - U U^T)``. Which directions a
    layer's update leaves is a matter of ``share``:

    - ``"energy"``, the default: fixed at the task's start, those that hold the share ``energy`` (0.95) of the trace of
      ``H_s``, of the inputs that the refusals are told from, and those that hold ``memory_energy`` (0.7) of that of
      ``sum_{i<t} H_i``, of all inputs of the earlier tasks. With ``energy`` alone it is one share of ``safety_weight
      H_s + memory_weight sum_{i<t} H_i``, of all inputs of both. Of sketches a share is counted as
      :meth:`hpa_lightning.functional.InputSketch.basis` says: where the energy decays slowly over far more than
      ``rank`` columns, the directions hold somewhat less.
    - ``"output"``: the fewest so that what the layer makes of the safety inputs ``X`` changes in the task by at most a
      share of it, ``||X D^T||_F <= budget ||X W^T||_F``, and likewise of the inputs of earlier tasks. The update starts
      free; whenever it is beyond its budget after a step, it leaves the next directions, those of largest energy first,
      for the rest of the task (:class:`hpa_lightning.callbacks.output_budget.OutputBudget`). The budget holds after
      every step, for every optimizer, of the inputs as they are at the task's start; with ``form="sketch"`` what the
      sketch has lost of them counts by an estimate (:func:`hpa_lightning.functional.input_spectrum`).
      ``stream_budget`` sets it for all T tasks of a stream together: each may use ``stream_budget / sqrt(T)``, so that
      the squares of the tasks' changes add up to at most that of the budget. Where the tasks' changes are uncorrelated,
      as they were found to be, that bounds what has changed since the stream's start; for sure it is ``sqrt(T)`` times
      as much. A fit without a stream is one task. What share is safe differs from model to model.
    - ``"nearest"``: the same budget; the update goes to the nearest one within it, which damps directions instead of
      leaving them (:func:`hpa_lightning.functional.nearest_in_budget`).
    - ``"refusals"``: as ``"output"``, with the share set so that the loss of the aligned model's own refusals on the
      calibration set rises in a task by at most ``budget`` nats a token
      (:class:`hpa_lightning.callbacks.refusal_budget.RefusalBudget`).

    What each layer got is said in the log, in the result file (``protection``) and in the report.

    With ``form="sketch"`` the Hessians are sketches of ``rank`` rows (Frequent Directions): no ``c x c`` matrix is
    formed of more than ``4 rank`` columns. What an update
    ``D`` that leaves ``U`` does to all inputs ``X`` behind them is bounded by the sketch: ``||X D^T||_F^2 <=
    (sigma_{k+1}^2 + Delta) ||D||_F^2``, with the sketch's singular values and ``Delta <= ||X - X_j||_F^2 / (rank + 1 -
    j)`` for every ``j <= rank`` (Ghashami et al., Frequent Directions, SIAM J. Comput. 2016, theorem 1.1; rounding to
    bfloat16 is counted in ``Delta``; ``InputSketch.worst_case`` says how much it is). Where the spectrum decays slowly
    and the rank is small, ``Delta`` is large, and a warning names the layers.

    Hooks: task start, the optimizer's step post-hook, the end of a batch (``"refusals"``), task end (the task's
    Hessian, before adapters are merged; what something else than the optimizer has written since the last step is
    projected, with a warning).
    State: the bases, or the spectra and what has been left of them; the weights before the task (full-parameter tuning
    only), the earlier tasks' Hessians or sketches, the safety calibration set; of LLaMA-7B sketches and bases at most
    0.6 GB at rank 192.
    Strategies: one device, DDP, FSDP2.
    Source: gradient projection memory (Saha et al., ICLR 2021) on HPA's calibration sets. The weights' update is
    projected instead of the gradient, since Adam's step leaves the subspace, as in Adam-NSCL (Wang et al., CVPR 2021);
    here it is the task's whole update, so that weight decay and rounding do not add up.

    Args:
        energy: share of the trace that is kept from changing, in [0, 1]: of the safety inputs beside ``memory_energy``,
            otherwise of the weighed sum.
        safety_weight: weight of the safety inputs; 0 leaves them out. With a budget a weight tightens its own kind's:
            4 halves it. Beside two shares it is 1 or 0.
        memory_weight: weight of each earlier task's inputs; 0 remembers none. Beside two shares it is 1 or 0.
        safety_data: harmful inputs with the aligned model's refusals: batches that the model can be trained on (a
            loader, a list, an iterator), a path, a ``RecordSet`` or records; from the datamodule when ``None`` (see
            :class:`hpa_lightning.callbacks.calibration_data.CalibrationData`).
        task_data: batches of the task; when ``None`` the datamodule's calibration split of the current task, or without
            a task stream the first samples of the training data.
        calibration: sizes and damping, or a dict of them; the paper's when ``None``, with 128 safety samples beside two
            shares, whose ``safety_positions`` are ``"answers"`` where it does not say.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        form: ``"sketch"``, or ``"exact"`` for whole Hessians and eigendecompositions (22 GB for LLaMA-7B).
        rank: rows of a sketch, and the most directions that are kept of one input; 192 rows of all inputs of LLaMA-7B
            and as many directions are 0.9 GB in memory.
        earlier_tasks: with ``form="sketch"``, a file of tasks that were learnt before this fit, which
            ``save_memory`` or ``hpa-lightning fuse --save-memory`` has written; they are protected as those of the fit.
        save_memory: with ``form="sketch"``, a file to be written after every task, for a later fit or fusion.
        share: how the directions of each layer are chosen; ``"output"`` where a budget is given, else ``"energy"``.
        budget: of each task, for a ``share`` other than ``"energy"``: of the output, or nats a token; 0.05 for
            ``"nearest"`` and ``"refusals"`` when ``None``.
        stream_budget: of all tasks of the stream together, in place of ``budget``, for ``"output"`` and ``"nearest"``;
            0.085 for ``"output"`` when neither is given.
        memory_energy: of ``"energy"``, the share of the trace of the earlier tasks' inputs that is kept from changing,
            in [0, 1]; 0.7 where ``energy`` is not given either. Where both shares of an input together have more than
            ``rank`` directions of its sketches, the strongest of both are kept, and a warning names the layers.
        refusal_budget: with ``"output"`` and ``"nearest"``, in addition: nats a token that the loss of the aligned
            model's own refusals may rise by in a task. What share of a layer's output costs how much safety differs
            from model to model; this is the same for all.

    Raises:
        ValueError: an energy outside [0, 1], a negative budget, settings that exclude one another, a weight that is
            negative, not finite, or neither 0 nor 1 beside two shares, or a file without ``form="sketch"``.

    Example:
        >>> from hpa_lightning.callbacks import NullSpaceProjection, SequentialTuning
        >>> projection = NullSpaceProjection()
        >>> callbacks = [SequentialTuning(), projection]   # of a Trainer, over a stream of tasks
    """

    start_order: ClassVar[int] = StartPhase.SUBSPACE
    end_order: ClassVar[int] = EndPhase.RESTORING

    def __init__(
        self,
        energy: float | None = None,
        safety_weight: float = 1.0,
        memory_weight: float = 1.0,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        calibration: CalibrationSettings | None = None,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        form: Form = "sketch",
        rank: int = 192,
        earlier_tasks: str | Path | None = None,
        save_memory: str | Path | None = None,
        share: Share | None = None,
        budget: float | None = None,
        stream_budget: float | None = None,
        refusal_budget: float | None = None,
        memory_energy: float | None = None,
    ) -> None:
        super().__init__()
        chosen = ProtectedShare.of(
            share, energy, memory_energy, budget, stream_budget, refusal_budget, safety_weight, memory_weight
        )
        self._made_with = chosen
        self.share, self.energy, self.memory_energy = chosen.share, chosen.energy, chosen.memory_energy
        self.budget, self.stream_budget, self.refusal_budget = (
            chosen.budget,
            chosen.stream_budget,
            chosen.refusal_budget,
        )
        self.layers = self.own(TunedLayers(self, blocks, target_modules))
        two_shares = self.memory_energy is not None
        if two_shares and calibration is None:
            calibration = CalibrationSettings(safety_samples=DEFAULT_SAFETY_SAMPLES)
        self.calibrator = self.own(
            Calibrator(
                self.layers,
                safety_data,
                task_data,
                calibration,
                safety_positions="answers" if two_shares else "all",
            )
        )
        self.memory = self.own(
            HessianMemory(
                self.calibrator,
                safety_weight,
                memory_weight,
                form,
                rank,
                earlier_tasks,
                save_memory,
                damped=self.energy is not None,
            )
        )
        self.output: OutputBudget | None = None
        self.refusals: RefusalBudget | None = None
        if self.share != "energy":
            whole = self.stream_budget is not None
            allowed = math.inf if self.share == "refusals" else self.stream_budget if whole else self.budget
            assert allowed is not None
            self.output = self.own(OutputBudget(self.layers, self.memory, allowed, self.share == "nearest", whole))
            if self.refusal_budget is not None:
                self.refusals = self.own(RefusalBudget(self.output, self.calibrator, self.refusal_budget))
        self.blocks, self.target_modules = blocks, target_modules
        self.safety_data, self.task_data, self.calibration = safety_data, task_data, self.calibrator.settings
        self.safety_weight, self.memory_weight = safety_weight, memory_weight
        self.form, self.rank = form, rank
        self.earlier_tasks, self.save_memory = earlier_tasks, save_memory
        self._bases: dict[str, Tensor] = {}
        self._turns: dict[str, Tensor] = {}  # basis @ turn is its bfloat16 copy
        self._first: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._check_share()

    def _check_share(self) -> None:
        """Refuse settings of the share that were changed since and that the constructor would have to know.

        Raises:
            ValueError: the rule is another one, or a number is none of its own.
        """
        made = self._made_with
        names = ("share", "energy", "memory_energy", "budget", "stream_budget", "refusal_budget")
        now = {name: getattr(self, name) for name in names}
        changed = [name for name in names if now[name] != getattr(made, name)]
        if not changed:
            return
        for name, weight in (("energy", self.safety_weight), ("memory_energy", self.memory_weight)):
            if weight == 0 and made.memory_energy is not None and name not in changed:
                now[name] = None  # the weight says what it is
        if made.share == "refusals" and now["refusal_budget"] == made.refusal_budget:
            now["refusal_budget"] = None  # it says what budget says
        ProtectedShare.of(**now, safety_weight=self.safety_weight, memory_weight=self.memory_weight)
        another = [
            name
            for name in changed
            if name == "share" or (getattr(self, name) is None) != (getattr(made, name) is None)
        ]
        if another:
            was, became = (", ".join(f"{name}={getattr(of, name)!r}" for name in another) for of in (made, self))
            raise ValueError(
                f"NullSpaceProjection was made with {was}, and has {became} now, which is another rule; give it to the "
                "constructor. Of the same rule the numbers may be changed."
            )

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.timed(trainer, task.index, "calibrate"):
            self.layers.find(pl_module)
            self.layers.keep_weights()
            batches = self.calibrator.safety_batches(trainer, pl_module)
            safety, self._first = self.memory.gather(trainer, pl_module, batches, "safety")
            if self.output is not None:
                self.output.begin(trainer, safety, self._first)
            else:
                self._take_bases(trainer, pl_module, task, safety)
            if self.refusals is not None:
                self.refusals.begin(trainer, pl_module, batches)
        self.after_step(trainer, pl_module)
        super().on_task_start(trainer, pl_module, task)

    def _take_bases(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        task: CurrentTask,
        safety: Mapping[str, Tensor] | Mapping[str, InputSketch],
    ) -> None:
        """Take the directions that hold the shares, which the whole task leaves."""
        assert self.energy is not None
        short: list[str] = []
        for name, inputs in safety.items():
            basis, enough = self._basis(name, inputs, pl_module.device)
            short += [] if enough else [name]
            # What a rank computes by itself may differ in the last bit from what another one does.
            self._bases[name] = trainer.strategy.broadcast(basis)
            if self.form == "sketch":
                self._bases[name], self._turns[name] = F.half_precision_basis(self._bases[name])
                self._bases[name] = self._bases[name].to(pl_module.device)
        if short:
            wanted = f"energy={self.energy}"
            wanted += "" if self.memory_energy is None else f" and memory_energy={self.memory_energy}"
            rank_zero_warn(
                f"NullSpaceProjection: with rank={self.rank} the directions kept hold, or may hold, too little for "
                f"{wanted} of the inputs of {len(short)} of {len(self._bases)} layers "
                f"({', '.join(short[:3])}{', ...' if short[3:] else ''}). Set a larger rank."
            )
        held, all_of_them = (sum(basis.shape[side] for basis in self._bases.values()) for side in (1, 0))
        rank_zero_info(
            f"Task {task.index} ({task.name}): {held} of the {all_of_them} directions of {len(self._bases)} distinct "
            "layer inputs are kept from changing."
        )
        if held == all_of_them:
            rank_zero_warn(
                f"NullSpaceProjection: task {task.index} ({task.name}) may change nothing: all {held} input directions "
                "of its layers are kept. Set a smaller energy, or memory_energy."
            )

    def _basis(self, name: str, safety: Tensor | InputSketch, device: torch.device) -> tuple[Tensor, bool]:
        """The directions of one input that are left, and whether a sketch holds enough of them."""
        assert self.energy is not None
        if self.memory_energy is None or self.memory.inputs.of(name) is None:
            return self._holding(self.memory.kept(name, safety), self.energy, device)
        alone, earlier = self.memory.kept(name, safety, 1.0, 0.0), self.memory.kept(name, safety, 0.0, 1.0)
        of_safety, enough = self._holding(alone, self.energy, device)
        of_tasks, also = self._holding(earlier, self.memory_energy, device)
        basis = F.joint_basis(of_safety, of_tasks)
        if isinstance(alone, Tensor) or isinstance(earlier, Tensor) or basis.shape[1] <= self.rank:
            return basis, enough and also
        # More than is to be kept: the strongest of both together, each of them as large as the other.
        both = self.memory.kept(name, safety, 1 / alone.trace, 1 / earlier.trace)
        return self._holding(both, 1.0, device)[0], False

    def _holding(self, kept: Tensor | InputSketch, energy: float, device: torch.device) -> tuple[Tensor, bool]:
        """The directions that hold a share of the energy, and whether a sketch holds as much."""
        kept = kept.to(device)
        if isinstance(kept, Tensor):
            return F.dominant_subspace(kept, energy), True
        basis = kept.basis(energy, self.rank)
        # Nearly all may be held where little is certain; with all rows taken nothing more can be.
        cut = basis.shape[1] == self.rank < kept.columns
        wanted = energy * (1 - 1e-6) if cut else 0.5 * energy
        return basis, kept.is_zero or kept.held(basis.shape[1]) >= wanted

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.resume(pl_module)
        if self.output is not None:
            self.output.resume(trainer, self._first)
            if self.refusals is not None:
                self.refusals.resume(trainer, pl_module)
            super().on_task_resume(trainer, pl_module, task)
            return
        missing = [linear.name for linear in self.layers if self._first.get(linear.name) not in self._bases]
        if missing:
            raise ValueError(
                f"the checkpoint holds no basis for {missing[:3]}; it was written while other layers were tuned, or "
                "with another share."
            )
        self._bases = self.layers.on_devices(self._bases)
        super().on_task_resume(trainer, pl_module, task)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.output is not None:
            self.output.keep_(trainer)
            return
        for linear in self.layers:
            basis = self._bases[self._first[linear.name]]
            F.null_space_projection_(local_tensor(linear.trained), linear.origin(), basis)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.refusals is not None and len(self.layers):
            self.refusals.check_(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        trained = {linear.name: local_tensor(linear.trained.detach()) for linear in self.layers}
        beyond = None if self.output is None else self.output.beyond()
        # LoRA's A begins with rows of norm 0.6; where all directions are kept, rounding is what is left of it.
        self.keep_again(trainer, pl_module, task, trained, beyond, row_norm=1.0)
        super().on_task_end(trainer, pl_module, task)
        if self.refusals is not None:
            self.refusals.check_(trainer, pl_module, last=True)
            self.refusals.clear()
        self._report(trainer, task)
        if self.memory_weight > 0:
            with self.timed(trainer, task.index, "remember"):
                batches = self.calibrator.task_batches(trainer, task)
                tasks, first = self.memory.gather(trainer, pl_module, batches, "task")
            self.memory.remember(trainer, pl_module, task, tasks, first)
        self._bases, self._turns, self._first = {}, {}, {}
        if self.output is not None:
            self.output.clear()
        self.layers.clear()

    def _report(self, trainer: L.Trainer, task: CurrentTask) -> None:
        """Say what share each layer's update has left."""
        shares = self.output.shares() if self.output is not None else {}
        events = []
        for linear in self.layers:
            if self.output is None:
                kept: dict[str, Any] = {"directions": float(self._bases[self._first[linear.name]].shape[1])}
            else:
                kept = dict(shares[linear.name])
            events.append(
                ProtectionEvent(
                    step=task.index,
                    task=task.name,
                    layer=linear.layer,
                    module=linear.name,
                    columns=linear.in_features,
                    share=self.share,
                    budget=self.budget if self.output is None else self.output.change,
                    **kept,
                )
            )
        for event in events:
            self.record(trainer, event)
        left, columns = (sum(getattr(event, key) for event in events) for key in ("directions", "columns"))
        text = f"Task {task.index} ({task.name}): {left:.0f} of {columns} input directions were left by the updates"
        if self.output is not None:
            most = max(share["change"] for share in shares.values())
            text += f"; outputs on protected inputs changed by at most {100 * most:.2g} %"
        if self.refusals is not None:
            text += f"; the loss of the refusals rose by {self.refusals.rose:.2g} nats a token"
        rank_zero_info(f"{text}.")
        if self.output is not None and self.refusals is None and left < _HARDLY_ANY * columns:
            rank_zero_warn(
                f"NullSpaceProjection: task {task.index} ({task.name}) left {left:.0f} of {columns} input directions: "
                "it changes what the layers make of protected inputs by less than the budget allows "
                f"({self.output.change:.2g}), so that next to nothing was protected. A model may lose its safety by "
                "less: measure it, and set a smaller budget, or refusal_budget, which means the same for all models."
            )
        figures = {"protection/directions": left / columns}
        if self.output is not None:
            figures["protection/largest_change"] = most
        if self.refusals is not None:
            figures["protection/refusal_loss"] = self.refusals.rose
        log_metrics(trainer, figures, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bases": cpu_state(self._bases)
            | {name: F.half_precision_copy(self._bases[name], turn) for name, turn in self._turns.items()},
            "first": dict(self._first),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._bases, self._turns = dict(state_dict["bases"]), {}
        for name, basis in self._bases.items():
            if basis.dtype == torch.bfloat16:  # the exact form saves float32
                self._bases[name], self._turns[name] = F.half_precision_basis(basis)
        self._first = dict(state_dict["first"])
