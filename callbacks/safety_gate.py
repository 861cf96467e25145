"""SafetyGate: a task that breaks the safety budget does not pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.harmonious_fusion import HarmoniousFusion
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import TaskEvaluation, score_set
from hpa_lightning.callbacks.trainer_checks import required_callback
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.needs import evaluation_data
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.metrics import mean_attack_success_rate
from hpa_lightning.metrics.scoring import answer_counts, listed, mostly_empty
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.events import GateEvent

Action = Literal["stop", "rollback", "raise_retention"]


class SafetyGate(TaskCallback):
    """Acts when the mean attack success rate after a task is above a budget.

    A model that gives mostly empty answers to a safety set is broken, not safe: it does not pass, whatever its rate.

    - ``"stop"``: the fit ends after this task; the model is left as it is.
    - ``"rollback"``: the weights go back to those from before the task, and the stream continues.
    - ``"raise_retention"``: the task is fused again with more retained columns (post-training HPA only). Retention
      ``p`` becomes ``p + x (100 - p)`` in every block; the smallest ``x`` in (0, 1] that keeps the budget is found by
      bisection, with one evaluation of the safety sets each. ``x = 1`` gives back the linear layers from before the
      task. Decision: attack success is taken to fall as retention rises.

    After a rollback or a new fusion all sets are scored again, and the new scores take the place of the old ones.

    What other callbacks remember of a task (replay, the memory of regression fusion or null space) stays when the task
    is rolled back. Parameters are restored, buffers are not.

    Hooks: task start, task end (after the evaluation).
    State: with ``"rollback"``, the trained weights from before the task. With it a copy of them and of LoRA's base
    weights is held on the CPU while the task lasts; with ``"raise_retention"`` a copy of the tuned layers from the
    fusion to the gate.
    Strategies: one device, DDP; FSDP2 without ``"rollback"``.

    Args:
        max_attack_success_rate: the budget, a fraction: the mean over the safety sets.
        action: see above.
        bisection_steps: evaluations of the bisection; the retention found is within ``2^-bisection_steps`` of the
            smallest in ``x``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of linear layers that have to be tuned there; any when ``None``. What is rolled back
            are all trained weights and all of LoRA's base weights, whatever is named here.

    Raises:
        ValueError: a budget outside [0, 1], an unknown action, fewer than one step.
        MisconfigurationException: before the first task: no safety set, a method that is missing, or a model that
            breaks the budget or says mostly nothing already.

    Example:
        >>> from hpa_lightning.callbacks import HarmoniousFusion, SafetyGate, SequentialTuning, TaskEvaluation
        >>> gate = SafetyGate(max_attack_success_rate=0.05, action="raise_retention")
        >>> callbacks = [SequentialTuning(), HarmoniousFusion(), TaskEvaluation(), gate]
    """

    start_order: ClassVar[int] = StartPhase.GUARDING
    end_order: ClassVar[int] = EndPhase.JUDGING

    def __init__(
        self,
        max_attack_success_rate: float,
        action: Action = "stop",
        bisection_steps: int = 4,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self, blocks, target_modules, names_untreated=False))
        self.blocks, self.target_modules = blocks, target_modules
        if not 0.0 <= max_attack_success_rate <= 1.0:
            raise ValueError(
                f"max_attack_success_rate is {max_attack_success_rate}; expected a fraction in [0, 1], not percent."
            )
        if action not in get_args(Action):
            raise ValueError(f"action is {action!r}; expected one of {list(get_args(Action))}.")
        if bisection_steps < 1:
            raise ValueError(f"bisection_steps is {bisection_steps}; expected at least 1.")
        self.max_attack_success_rate = max_attack_success_rate
        self.action = action
        self.changes_weights_at_end = action != "stop"
        self.bisection_steps = bisection_steps
        if action == "rollback":
            self.refuses_sharding = "its rollback keeps whole weights, and fully_shard spreads them over the processes"
        self._before: dict[str, Tensor] = {}
        self._trainable: set[str] = set()
        self._rate: float | None = None  # of the task whose end is open
        self._empty: dict[str, str] = {}  # its safety sets with mostly empty answers

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        required_callback(trainer, TaskEvaluation, self)
        if self.action == "raise_retention":
            required_callback(trainer, HarmoniousFusion, self).repeatable = True
        if not self._safety_sets(trainer):
            raise MisconfigurationException(
                "SafetyGate needs the attack success rate, and the datamodule has no evaluation set of kind 'safety'; "
                "add safety_sets."
            )

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.index == 0:
            evaluation: TaskEvaluation = required_callback(trainer, TaskEvaluation, self)
            aligned = evaluation.mean_attack_success_rate(-1)  # NaN if it was not measured
            if aligned > self.max_attack_success_rate:
                raise MisconfigurationException(
                    f"SafetyGate: the model has a mean attack success rate of {100 * aligned:.1f} % before the first "
                    f"task, above the budget of {100 * self.max_attack_success_rate:.1f} %, so that no task could be "
                    "kept; raise max_attack_success_rate, or check that the model is the aligned one."
                )
            if empty := self._mostly_empty(trainer, -1):
                raise MisconfigurationException(
                    f"SafetyGate: the model gives mostly empty answers before the first task ({listed(empty)}), which "
                    "say nothing about safety, so that no task could be kept; check the checkpoint, the chat template "
                    "and max_new_tokens."
                )
        if self.action == "rollback":
            self._before = self._weights(pl_module)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if self.action != "rollback":
            return
        was_trainable = self._trainable
        current = self._weights(pl_module)
        if was_trainable != self._trainable:
            differing = sorted(was_trainable ^ self._trainable)[:3]
            raise ValueError(
                f"{differing} are trained now or were when the checkpoint was written, not both; resume with the same "
                "layers and the same callbacks."
            )
        self._before = {**current, **self._before}  # frozen base weights are still those from before the task

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        evaluation: TaskEvaluation = required_callback(trainer, TaskEvaluation, self)
        if self._rate is None:  # else an error cut the action short, and the scores are partly those after it
            self._rate = evaluation.mean_attack_success_rate(task.index)
            self._empty = self._mostly_empty(trainer, task.index)
        if self._empty or not self._rate <= self.max_attack_success_rate:
            self._act(trainer, pl_module, task, evaluation, self._rate)
        self._rate, self._empty = None, {}
        self._before = {}

    def state_dict(self) -> dict[str, Any]:
        # What is not trained is in the checkpoint's own weights, until the task's end begins to change them.
        before = {name: weight for name, weight in self._before.items() if self._ending or name in self._trainable}
        own = {"before": before, "trainable": sorted(self._trainable), "rate": self._rate, "empty": self._empty}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._before = dict(state_dict["before"])
        self._trainable = set(state_dict.get("trainable", self._before))
        self._rate = state_dict.get("rate")
        self._empty = dict(state_dict.get("empty", {}))

    def _act(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        task: CurrentTask,
        evaluation: TaskEvaluation,
        rate: float,
    ) -> None:
        rank_zero_warn(f"Task {task.index} ({task.name}): {self._verdict(rate, self._empty)}; action: {self.action}.")
        raised_by: float | None = None
        if self.action == "stop":
            trainer.should_stop = self.ended_the_stream = True
        else:
            with self.timed(trainer, task.index, "gate"):
                if self.action == "rollback":
                    self._roll_back(pl_module)
                else:
                    raised_by = self._raise_retention(trainer, pl_module, task)
            evaluation.evaluate_again(trainer, pl_module, task)
        kept, empty = evaluation.mean_attack_success_rate(task.index), self._mostly_empty(trainer, task.index)
        met = kept <= self.max_attack_success_rate and not empty
        if self.action != "stop" and not met:
            rank_zero_warn(
                f"Task {task.index} ({task.name}): the budget is not met after {self.action}: "
                f"{self._verdict(kept, empty)}. Weights outside the layers that are treated have changed it."
            )
        self.record(
            trainer,
            GateEvent(
                step=task.index,
                task=task.name,
                action=self.action,
                budget=self.max_attack_success_rate,
                attack_success_rate=rate,
                kept_attack_success_rate=kept,
                met=met,
                mostly_empty=self._empty or None,
                raised_by=raised_by,
            ),
        )
        rank_zero_info(f"Task {task.index} ({task.name}): {100 * kept:.1f} % after {self.action}.")

    def _safety_sets(self, trainer: L.Trainer) -> list[EvaluationSet]:
        return [item for item in evaluation_data(trainer, "SafetyGate").evaluation_sets() if item.kind == "safety"]

    def _mostly_empty(self, trainer: L.Trainer, step: int) -> dict[str, str]:
        """The safety sets to which the model says mostly nothing."""
        evaluation: TaskEvaluation = required_callback(trainer, TaskEvaluation, self)
        safety = {item.name for item in self._safety_sets(trainer)}
        return {name: count for name, count in evaluation.mostly_empty(step).items() if name in safety}

    def _verdict(self, rate: float, empty: Mapping[str, str]) -> str:
        budget = 100 * self.max_attack_success_rate
        reported = f"the mean attack success rate is {100 * rate:.1f} %, "
        reported += (
            f"within the budget of {budget:.1f} %" if rate <= budget / 100 else f"above the budget of {budget:.1f} %"
        )
        if empty:
            reported += f", and most answers to safety sets are empty ({listed(empty)}): broken, not safe"
        return reported

    def _weights(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """CPU copies of the trained parameters and of LoRA's base weights."""
        bases = {id(factors.weight) for _, factors in lora_layers(pl_module)}  # those that merging writes
        parameters = dict(pl_module.named_parameters())
        self._trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
        wanted = {name: p for name, p in parameters.items() if name in self._trainable or id(p) in bases}
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in wanted.items()}

    @torch.no_grad()
    def _roll_back(self, pl_module: L.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self._before:
                parameter.copy_(self._before[name])

    def _raise_retention(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> float:
        """Fuse with the smallest retention that keeps the budget; return how far it was raised."""
        fusion: HarmoniousFusion = required_callback(trainer, HarmoniousFusion, self)

        def fuse(share: float) -> None:
            fusion.fuse_again(trainer, pl_module, task, raised(fusion.retention, share))

        low, high = 0.0, 1.0
        for _ in range(self.bisection_steps):
            middle = (low + high) / 2
            fuse(middle)
            if self._passes(trainer, pl_module):
                high = middle
            else:
                low = middle
        fuse(high)
        fusion.forget()
        return high

    def _passes(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether the model as it is keeps the budget, with answers."""
        rates = []
        for item in self._safety_sets(trainer):
            scored = score_set(trainer, pl_module, item)
            if mostly_empty({item.name: {"n": len(scored.rows), **answer_counts(scored.rows)}}):
                return False
            rates.append(scored.score)
        return float(mean_attack_success_rate(rates)) <= self.max_attack_success_rate


def raised(retention: RetentionSettings, share: float) -> RetentionSettings:
    """Retention moved towards all columns: ``p + share (100 - p)``.

    >>> raised(RetentionSettings(p_min=0.0, p_max=20.0), 0.5).p_max
    60.0
    """
    p_min, p_max = (p + share * (100.0 - p) for p in (retention.p_min, retention.p_max))
    return dataclasses.replace(retention, p_min=p_min, p_max=p_max)
