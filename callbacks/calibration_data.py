"""What a callback calibrates with: batches of safety inputs and of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from hpa_lightning.answering import answering_module
from hpa_lightning.calibration import DummyBatch
from hpa_lightning.calibration.input_recorder import Mask
from hpa_lightning.callbacks.batches import answer_positions, batch_length, training_batches, valid_positions
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.running import evaluation_mode, forward_context, to_device, to_device_as_trained
from hpa_lightning.callbacks.safety_data import (
    check_not_one_batch,
    check_safety_data,
    collator_of,
    naming_data,
    repeatable,
    safety_records,
    settings_of,
)
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data.needs import calibration_stream, harmful_data, refused_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.safety_sets import SafetyCalibration, build_safety_calibration, given_safety_calibration
from hpa_lightning.data.tasks import Data
from hpa_lightning.metrics.judges import StringRefusalJudge, judge_name
from hpa_lightning.results.events import SafetyCalibrationEvent

Positions = Literal["all", "answers"]


@dataclass(frozen=True)
class CalibrationSettings:
    """Sizes and settings of the calibration.

    Args:
        safety_samples: size of the safety calibration set (paper: 8).
        task_samples: size of the task calibration set (paper: 128). ``limit_train_batches`` and ``overfit_batches`` cut
            what is trained, not what this is taken from; ``task_data`` says what it is.
        batch_size: samples in one forward pass.
        damping: share of the Hessian's mean diagonal added to its diagonal.
        judge: refusal rules by which the aligned model's own answers are checked.
        normalized: divide the Hessian by the number of tokens (decision); without it a larger calibration set weighs
            more. Only the balance of HPA's safety and task focus depends on it.
        safety_positions: whose inputs of the safety set count: ``"all"`` that are no padding (the paper, as far as it
            says), or ``"answers"``, those that the tokens of the refusals are told from (one before each label).
            ``None``: ``"answers"`` for null-space projection with a share of its own for them, else ``"all"``.

    Raises:
        ValueError: no samples, a damping that is not positive, or other positions.
    """

    safety_samples: int = 8
    task_samples: int = 128
    batch_size: int = 8
    damping: float = 0.01
    judge: str = "default"
    normalized: bool = True
    safety_positions: Positions | None = None

    def __post_init__(self) -> None:
        for name in ("safety_samples", "task_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; expected a positive share of the mean diagonal.")
        if self.safety_positions not in (None, *get_args(Positions)):
            raise ValueError(
                f"safety_positions is {self.safety_positions!r}; expected one of {list(get_args(Positions))}."
            )

    @property
    def positions(self) -> Positions:
        """``safety_positions``, or ``"all"`` where it is ``None``."""
        return self.safety_positions or "all"

    def settled(self, safety_positions: Positions = "all") -> CalibrationSettings:
        """The same settings, with the positions given where they name none."""
        return replace(self, safety_positions=self.safety_positions or safety_positions)

    def counted(self, what: str) -> Callable[[Any], Mask]:
        """Batch of ``"safety"`` or ``"task"`` data -> which of its positions count."""
        return answer_positions if what == "safety" and self.positions == "answers" else valid_positions


class CalibrationData(Part):
    """Makes the calibration batches of each task; the safety set is made once, by the aligned model.

    State: ``"safety_calibration"``, the safety calibration set, once it is made.

    Args:
        owner: the callback.
        safety_data: batches that the model can be trained on, holding harmful inputs with the aligned model's
            refusals (a loader, a list, an iterator); or a path, a :class:`RecordSet` or records that end with the
            refusals. ``None``: from the datamodule. It gives the refusals themselves
            (``refused_calibration_records``), or ``harmful_calibration_records``, which the aligned model answers once,
            before the first task; only answers that the judge calls refusals are used.
        task_data: batches of the task. ``None``: the datamodule's calibration split of the current task; without a
            task stream, the first samples of the training data.
        settings: sizes and damping, or a dict of them; the paper's when ``None``.
        needs_safety_data: refuse a fit without safety data.
        safety_positions: whose inputs of the safety set count where the settings do not say.
    """

    follows: Mapping[str, str] = {
        "safety_data": "safety_data",
        "task_data": "task_data",
        "calibration": "settings",
    }

    def __init__(
        self,
        owner: TaskCallback,
        safety_data: Data | Iterable[Any] | None = None,
        task_data: Iterable[Any] | None = None,
        settings: CalibrationSettings | Mapping[str, Any] | None = None,
        needs_safety_data: bool = True,
        safety_positions: Positions = "all",
    ) -> None:
        super().__init__(owner)
        self.safety_data = safety_data
        self.task_data = task_data
        self._positions = safety_positions
        self.settings = settings
        self.needs_safety_data = needs_safety_data
        self._warned: set[str] = set()
        self._safety_calibration: SafetyCalibration | None = None

    @property
    def settings(self) -> CalibrationSettings:
        """Sizes and damping, with the positions that count; it is set with what the constructor takes."""
        return self._settings

    @settings.setter
    def settings(self, settings: CalibrationSettings | Mapping[str, Any] | None) -> None:
        self._settings = settings_of(CalibrationSettings, settings, "calibration").settled(self._positions)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_not_one_batch(self.task_data, "task_data", self.caller)
        if not self.needs_safety_data:
            return
        if self.safety_data is not None:
            check_safety_data(self.safety_data, self.caller)
            return
        if refused_records(harmful_data(trainer, self.caller)) is None:
            answering_module(pl_module, self.caller)

    def named(self, what: str) -> str:
        """What the ``"safety"`` or the ``"task"`` data are called in messages."""
        if what.startswith("safety"):
            return "safety_data" if self.safety_data is not None else "the safety calibration set"
        return "task_data" if self.task_data is not None else "the task's data"

    def safety_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        """This process's share of the safety calibration batches; built by the aligned model on the first call."""
        with naming_data(self.caller, self.named("safety")):
            return self._safety_batches(trainer, pl_module)

    def task_batches(self, trainer: L.Trainer, task: CurrentTask, size: int | None = None) -> list[Any]:
        """This process's share of the task's calibration batches.

        Args:
            trainer: of the fit.
            task: the current task.
            size: samples; those of the settings when ``None``.
        """
        with naming_data(self.caller, self.named("task")):
            return self._task_batches(trainer, task, self.settings.task_samples if size is None else size)

    def _safety_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        size = self.settings.safety_samples
        records = None if self.safety_data is None else safety_records(self.safety_data)
        if self.safety_data is not None and records is None:
            given: Any = self.safety_data  # batches: neither a file nor a set
            self.safety_data = repeatable(given)
            batches, samples, more = self._take(self.safety_data, size, look_ahead=True)
            self._warn_of_samples("safety_data", samples, more)
            return self._share(trainer, batches)
        if self._safety_calibration is None:
            if records is not None:
                self._warn_of_samples("safety_data", min(len(records), size), len(records) > size)
            else:
                data = harmful_data(trainer, self.caller)
                self._check_enough(len(data.harmful_calibration_records()))
                records = refused_records(data)
            self._safety_calibration = self._made_safety_calibration(trainer, pl_module, records)
        collator = collator_of(trainer, pl_module, self.caller)
        used, size = list(self._safety_calibration.records), self.settings.batch_size
        chunks = [used[start : start + size] for start in range(0, len(used), size)]
        return self._share(trainer, [collator.train(chunk) for chunk in chunks])

    def _made_safety_calibration(
        self, trainer: L.Trainer, pl_module: L.LightningModule, given: Sequence[Record] | None
    ) -> SafetyCalibration:
        """Take the refusals that are given, or let the model answer the datamodule's harmful inputs."""
        judge, size = StringRefusalJudge(self.settings.judge), self.settings.safety_samples
        if given is not None:
            made = given_safety_calibration(given, judge, size)
        else:
            data, module = harmful_data(trainer, self.caller), answering_module(pl_module, self.caller)
            with evaluation_mode(pl_module), forward_context(trainer):
                made = build_safety_calibration(
                    lambda batch: module.generate(to_device(trainer, batch)),
                    collator_of(trainer, pl_module, self.caller),
                    data.harmful_calibration_records(),
                    judge,
                    size=size,
                    batch_size=self.settings.batch_size,
                )
        self.owner.record(
            trainer,
            SafetyCalibrationEvent(
                asked=made.asked,
                refused=made.refused,
                used=len(made.records),
                judge=judge_name(judge),
                records=tuple(record.where for record in made.records),
                answers="model" if given is None else "given",
            ),
        )
        return made

    def _check_enough(self, given: int) -> None:
        """Not in ``setup``, which does not know whether a checkpoint holds the set: then no record is asked for."""
        wanted = self.settings.safety_samples
        if given < wanted:
            raise MisconfigurationException(
                f"{self.caller}: harmful_calibration holds {given} records, and calibration.safety_samples "
                f"is {wanted}; give more harmful inputs, or ask for fewer."
            )

    def _warn_of_samples(self, argument: str, used: int, more: bool) -> None:
        """Warn once if not all samples that were given are used, or fewer are there than are asked for."""
        wanted = self.settings.safety_samples
        if argument in self._warned or (used >= wanted and not more):
            return
        self._warned.add(argument)
        if more:
            reported = f"holds more than the {used} samples that are used"
        else:
            reported = f"holds {used} samples, and all of them are used"
        rank_zero_warn(
            f"{self.caller}: {argument} {reported}: calibration.safety_samples is {wanted}. Set it to the number "
            "that you mean."
        )

    def _task_batches(self, trainer: L.Trainer, task: CurrentTask, size: int) -> list[Any]:
        if self.task_data is not None:
            self.task_data = repeatable(self.task_data, self.settings.task_samples)
            return self._share(trainer, self._take(self.task_data, size)[0])
        if (stream := calibration_stream(trainer, self.caller)) is not None:
            return self._share(trainer, self._take(stream.calibration_dataloader(task.index, size), size)[0])
        # Lightning has given every process a loader of other samples.
        own = self._take(training_batches(trainer), -(-size // trainer.world_size))[0]
        return self._share(trainer, own, replicated=False)

    def _take(self, data: Iterable[Any], size: int, look_ahead: bool = False) -> tuple[list[Any], int, bool]:
        """Batches of ``size`` samples or more; how many they hold; with ``look_ahead``, whether more follow."""
        batches: list[Any] = []
        samples, more = 0, False
        with isolate_rng():  # even a loader that does not shuffle draws a seed for its workers
            for batch in data:
                if samples >= size:
                    more = True
                    break
                batches.append(batch)
                samples += batch_length(batch)
                if samples >= size and not look_ahead:
                    break
        if not batches:
            raise ValueError(f"{self.caller}: the calibration data are empty; expected at least one batch.")
        return batches, samples, more

    def _share(self, trainer: L.Trainer, batches: list[Any], replicated: bool = True) -> list[Any]:
        """This process's batches, on its device and filled up to equally many on each.

        Args:
            trainer: whose processes share them.
            batches: at least one.
            replicated: every process holds the same batches; otherwise each holds its own.
        """
        size = trainer.world_size
        share = batches[trainer.global_rank :: size] if replicated else batches
        counts = [len(batches[rank::size]) for rank in range(size)]
        if not replicated and size > 1:
            torch.distributed.all_gather_object(counts, len(share))
        on_device = [to_device_as_trained(trainer, batch) for batch in share]
        fill = max(counts) - len(share)
        return on_device + fill * [DummyBatch(on_device[0] if on_device else to_device_as_trained(trainer, batches[0]))]

    def state_dict(self) -> dict[str, Any]:
        made = self._safety_calibration
        return {} if made is None else {"safety_calibration": made.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "safety_calibration" in state_dict:
            self._safety_calibration = SafetyCalibration.from_state_dict(state_dict["safety_calibration"])
