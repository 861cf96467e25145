"""LayerDrift: how far each decoder block has moved from the aligned model, in hidden states and in weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from hpa_lightning.answering import scored_module
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.running import evaluation_mode, forward_context
from hpa_lightning.callbacks.safety_data import collator_of
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data.needs import prompt_data, records_of, task_stream
from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import Data
from hpa_lightning.functional import state_cosines
from hpa_lightning.members import conforming
from hpa_lightning.modules.tuned_linear import TunedLinear, find_tuned_linears
from hpa_lightning.prompt_states import prompt_states
from hpa_lightning.results.events import DriftEvent, DriftPromptsEvent, WeightDriftEvent
from hpa_lightning.safety_layers import shown_by_states
from hpa_lightning.trainer_attributes import log_metrics
from hpa_lightning.weight_drift import WeightDrift

HARMLESS, HARMFUL = "harmless", "harmful"


_PROMPTS = (
    "LayerDrift needs prompts={name: file or records}; without them it takes those of a datamodule, and asks it for",
    "Pass prompts=, or fit with a CVITDataModule.",
)


class LayerDrift(TaskCallback):
    """Compares every decoder block's output with that of the model before the first task, on fixed prompts.

    Measured is the mean cosine of the hidden states at the prompts' last token, after every task (after fusion and
    merge) and, with ``every_n_steps``, within the tasks. The safety layers that the first model shows on the harmless
    and the harmful prompts (:func:`safety_layer_range`) are recorded beside it. Measuring changes no training.

    Hooks: ``setup``, task start (the first one), ``on_train_batch_end``, task end (after the evaluation).
    Events: ``drift_prompts``, ``drift``, ``weight_drift``. Logged: ``drift/SET``, the mean over the blocks of ``1 -
    cosine``; ``drift/SET_safety_layers``, that over the safety layers; ``drift/weights``.
    State: the first model's hidden states, fp32 ``(n, blocks, width)`` for each set; with ``weights`` a copy of the
    tuned weights. Strategies: one device; DDP and FSDP2 (every process runs all prompts).
    Source: arXiv 2410.07571, analysis of the layers. Decision: the last token of the prompt, as in the search for
    safety layers.

    Args:
        prompts: name -> path, records or published set of prompts, or the name of one of the datamodule's evaluation
            sets. The names ``harmless`` and ``harmful`` stand for the two kinds that the safety layers are found with.
            ``None``: ``harmful``, the datamodule's ``harmful_calibration_records``, and ``harmless``, the first task's
            calibration records.
        every_n_steps: measure within the tasks too, after so many optimizer steps; ``None``: at the tasks' ends alone.
        most: most prompts of each set, the first ones.
        batch_size: prompts in one forward pass.
        weights: measure the tuned layers' weights too; holds one copy of them on the CPU and in each checkpoint.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: sizes below 1.
        MisconfigurationException: before the fit: no prompts, or no evaluation set and no file of a name.

    Example:
        >>> from hpa_lightning.callbacks import LayerDrift, SequentialTuning
        >>> callbacks = [SequentialTuning(), LayerDrift(every_n_steps=50, most=32)]
    """

    start_order: ClassVar[int] = StartPhase.COMPARING
    end_order: ClassVar[int] = EndPhase.COMPARING
    shapes_training: ClassVar[bool] = False

    def __init__(
        self,
        prompts: dict[str, Data] | None = None,
        every_n_steps: int | None = None,
        most: int = 64,
        batch_size: int = 8,
        weights: bool = False,
        blocks: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("most", most), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if prompts is not None and not prompts:
            raise ValueError("prompts is empty; expected at least one named set, or None for those of the datamodule.")
        self.prompts = prompts
        self.every_n_steps = every_n_steps
        self.most = most
        self.batch_size = batch_size
        self.weights = weights
        self.blocks = blocks
        self._records: dict[str, list[Record]] = {}
        self._states: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._layers: dict[str, int] = {}  # name -> its block, counted from 1
        self._safety: tuple[int, int] | None = None
        self._measured_at = -1
        self._warned_of_new = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        scored_module(pl_module, "LayerDrift")
        collator_of(trainer, pl_module, "LayerDrift")
        self._records = {}
        if self.prompts is not None:
            self._records = {name: self._read(trainer, name, data) for name, data in self.prompts.items()}
            return
        prompt_data(trainer, *_PROMPTS)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index > 0:
            self._require_reference(task)
            return
        with self.timed(trainer, -1, "drift"):
            self._states = self._hidden_states(trainer, pl_module)
            if self.weights:
                _, linears = find_tuned_linears(pl_module, self.blocks)
                self._weights = {linear.name: linear.dense_after().to("cpu", copy=True) for linear in linears}
                self._layers = {linear.name: linear.layer for linear in linears}
        gap = self._find_safety_layers()
        first, last = self._safety or (None, None)
        sets = {name: len(states) for name, states in self._states.items()}
        self.record(trainer, DriftPromptsEvent(sets=sets, first=first, last=last, gap_degrees=gap))
        self._measured_at = trainer.global_step

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._require_reference(task)
        self._measured_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        at = trainer.global_step
        if self.every_n_steps is None or self._open_task is None or at == self._measured_at:
            return
        if at % self.every_n_steps == 0:
            self._measure(trainer, pl_module, self._open_task, "train")

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._measure(trainer, pl_module, task.index, "end")

    def state_dict(self) -> dict[str, Any]:
        found = {"states": dict(self._states), "weights": dict(self._weights), "layers": dict(self._layers)}
        return super().state_dict() | found | {"safety_layers": None if self._safety is None else list(self._safety)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._states, self._weights = dict(state_dict["states"]), dict(state_dict["weights"])
        self._layers, found = dict(state_dict["layers"]), state_dict["safety_layers"]
        self._safety = None if found is None else (int(found[0]), int(found[1]))

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, phase: str) -> None:
        """Record how far all blocks are from where they began."""
        at = self._measured_at = trainer.global_step
        logged: dict[str, float] = {}
        with self.timed(trainer, step, "drift"):
            for name, states in self._hidden_states(trainer, pl_module).items():
                cosine = state_cosines(self._states[name], states).mean(dim=0).tolist()
                count = len(states)
                self.record(trainer, DriftEvent(step=step, at=at, phase=phase, set=name, n=count, cosine=tuple(cosine)))
                logged[f"drift/{name}"] = 1.0 - sum(cosine) / len(cosine)
                if self._safety is not None:
                    inside = cosine[self._safety[0] - 1 : self._safety[1]]
                    logged[f"drift/{name}_safety_layers"] = 1.0 - sum(inside) / len(inside)
            if self.weights:
                blocks, linears = find_tuned_linears(pl_module, self.blocks)
                drift = self._weight_drift(linears)
                by_block, by_module = drift.blocks(len(blocks)), drift.modules()
                self.record(
                    trainer, WeightDriftEvent(step=step, at=at, phase=phase, blocks=tuple(by_block), modules=by_module)
                )
                logged["drift/weights"] = sum(by_block) / len(by_block)
        log_metrics(trainer, logged, at)
        if phase == "end":
            reported = ", ".join(f"{key.removeprefix('drift/')} {value:.4f}" for key, value in logged.items())
            rank_zero_info(f"Task {step}: drift from the first model: {reported}.")

    def _weight_drift(self, linears: Sequence[TunedLinear]) -> WeightDrift:
        """Layers that are not tuned any more have not moved."""
        now = {linear.name: linear for linear in linears}
        if (new := [name for name in now if name not in self._weights]) and not self._warned_of_new:
            self._warned_of_new = True
            rank_zero_warn(
                f"LayerDrift: {len(new)} linear layers, {new[0]!r} among them, are tuned now and were not before the "
                "first task: their weights from then are not known, and the drift of the weights leaves them out."
            )
        drift = WeightDrift()
        for name, weight in self._weights.items():
            drift.add(name, self._layers[name], weight, now[name].dense_after() if name in now else None)
        return drift

    def _hidden_states(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
        collator = collator_of(trainer, pl_module, "LayerDrift")
        with evaluation_mode(pl_module), forward_context(trainer):
            return {
                name: prompt_states(pl_module, collator, records, self.batch_size, self.blocks)
                for name, records in self._prompts(trainer).items()
            }

    def _find_safety_layers(self) -> tuple[float, ...] | None:
        """Find the safety layers on the first model's states, and return the gap of all blocks."""
        self._safety = None
        missing = [name for name in (HARMLESS, HARMFUL) if name not in self._states]
        if missing or len(self._states[HARMLESS]) < 2:
            rank_zero_info(f"LayerDrift: without prompts named {missing or [HARMLESS]} no safety layers are found.")
            return None
        gap, self._safety, reason = shown_by_states(self._states[HARMLESS], self._states[HARMFUL])
        if self._safety is None:
            rank_zero_warn(f"LayerDrift finds no safety layers: {reason}")
        return gap

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _prompts(self, trainer: L.Trainer) -> Mapping[str, Sequence[Record]]:
        if not self._records:
            data = prompt_data(trainer, *_PROMPTS)
            harmless = list(records_of(data.calibration_dataloader(0, self.most)) or ())
            harmful = list(data.harmful_calibration_records())
            self._records = {HARMLESS: harmless[: self.most], HARMFUL: harmful[: self.most]}
        return self._records

    def _read(self, trainer: L.Trainer, name: str, data: Data) -> list[Record]:
        scored: EvaluationData | None = conforming(task_stream(trainer), EvaluationData)
        sets = {} if scored is None else {item.name: item for item in scored.evaluation_sets()}
        if scored is not None and isinstance(data, str) and data in sets:
            records: Sequence[Record] = records_of(scored.evaluation_dataloader(sets[data])) or ()
        else:
            try:
                records = as_records(data, None, f"prompts {name!r}")
            except (OSError, ValueError) as error:
                known = f" The datamodule's evaluation sets are {sorted(sets)}." if isinstance(data, str) else ""
                raise MisconfigurationException(f"LayerDrift: prompts {name!r}: {error}{known}") from error
        if not records:
            raise MisconfigurationException(f"LayerDrift: prompts {name!r} holds no record; expected at least one.")
        return list(records)[: self.most]

    def _require_reference(self, task: CurrentTask) -> None:
        lacking = set(self._records or self._states) - set(self._states)
        if lacking or not self._states or (self.weights and not self._weights):
            raise ValueError(
                "LayerDrift compares with the model before the first task, and this fit continues in task "
                f"{task.index} "
                f"from a checkpoint that lacks {sorted(lacking) or 'it'}: it was written without the callback, or with "
                "other prompts. Run the whole stream with it, or leave it out."
            )
