"""The records behind a stream: read once, checked, with samples injected or replayed and test data kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path

import torch

from hpa_lightning.data.bad_records import report_skipped
from hpa_lightning.data.digests import records_digest
from hpa_lightning.data.formats import as_records, examine_records
from hpa_lightning.data.formats.turns import ImagePlace
from hpa_lightning.data.loading import named_generator
from hpa_lightning.data.overlap import refuse_overlap
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.records import Record, check_record, missing_images
from hpa_lightning.data.tasks import Data, EvaluationSet, HarmfulInjection, Replay, SafetyReplay, Task, replay_counts
from hpa_lightning.values import shown


class RecordSource:
    """Reads every file once and refuses what is broken, missing or seen in training.

    Args:
        seed: of the draws of injected and replayed samples.
        injection: harmful samples mixed into the training data.
        check_images: check that every image file exists when a file is read.
        allow_overlap: accept test records in the training or calibration data.
        tasks: the stream, which tells what came before a task.
        replay: records of the earlier tasks mixed into the training data.
        safety_replay: refused harmful inputs mixed into the training data.
        image_place: of images in files that name no place of their own, see :func:`read_records`.
        skip: leave broken training and calibration records out, with one warning for each data set.

    Attributes:
        check_text: called with every record that is read.
        injected: task name -> indices into the harmful-injection data of the samples mixed into its training data.
        replayed: task name -> indices of what later tasks replay, into its training data with the injected samples.
        safety_replayed: indices into the safety-replay data of the records that all tasks replay.
        replay_counts: task name -> how many samples of earlier tasks, and of the safety set, it trains on, repetitions
            counted; a task without any is left out.
    """

    def __init__(
        self,
        seed: int,
        injection: HarmfulInjection | None,
        check_images: bool,
        allow_overlap: bool,
        tasks: Sequence[Task] = (),
        replay: Replay | None = None,
        safety_replay: SafetyReplay | None = None,
        image_place: ImagePlace = "front",
        skip: bool = False,
    ) -> None:
        self._seed = seed
        self._skip = skip
        self._injection = injection
        self._check_images = check_images
        self._allow_overlap = allow_overlap
        self._tasks = tasks
        self._replay = replay
        self._safety_replay = safety_replay
        self.image_place: ImagePlace = image_place
        self._read: dict[str, list[Record]] = {}
        self._own: dict[str, list[Record]] = {}
        self._train: dict[str, list[Record]] = {}
        self._digests: dict[int, str] = {}  # by the identity of lists that are kept above
        self.check_text: Callable[[Record], None] | None = None
        self.injected: dict[str, list[int]] = {}
        self.replayed: dict[str, list[int]] = {}
        self.safety_replayed: list[int] = []
        self.replay_counts: dict[str, list[int]] = {}

    def read(
        self, data: Data, image_folder: str | None, what: str, image_place: ImagePlace | None = None
    ) -> list[Record]:
        """Return the records of ``data``; ``what`` names it in messages and is read once.

        Raises:
            ValueError: broken records or missing image files.
        """
        if what not in self._read:
            records = as_records(data, image_folder, what, image_place or self.image_place)
            check = self.check_text
            if check is not None:
                for record in records:
                    check(record)
            missing = missing_images(records) if self._check_images else []
            if missing:
                where, path = missing[0]
                raise ValueError(
                    f"{what}: {len(missing)} image files are missing, the first in {where}: {shown(path)}; check "
                    "`image_folder`, or pass check_images=False to find out later."
                )
            self._read[what] = records
        return self._read[what]

    def _read_learnt(self, data: Data, task: Task, what: str) -> list[Record]:
        """Return the records of training or calibration data; without the broken ones where those are skipped."""
        if not self._skip:
            return self.read(data, task.image_folder, what, task.image_place)
        if what not in self._read:
            place = task.image_place or self.image_place
            if isinstance(data, str | Path):
                records, broken = examine_records(data, task.image_folder, what, place)
            else:
                records, broken = list(data.read() if isinstance(data, RecordSet) else data), []
            bad = {f"{what}, {number}": problem for number, problem in enumerate(broken)}
            bad |= {record.where: problem for record in records if (problem := self._problem_of(record)) is not None}
            report_skipped(bad, what)
            self._read[what] = [record for record in records if record.where not in bad]
            if not self._read[what]:
                raise ValueError(f"{what} holds no record that can be used.")
        return self._read[what]

    def _problem_of(self, record: Record) -> str | None:
        try:
            check_record(record, needs_answer=True)
            if self.check_text is not None:
                self.check_text(record)
        except ValueError as error:
            return str(error)
        missing = missing_images([record]) if self._check_images else []
        return f"{record.where}: image file {missing[0][1]!r} does not exist" if missing else None

    def digest(self, records: list[Record]) -> str:
        """Return the digest of a list that this source has given out; it is computed once."""
        if id(records) not in self._digests:
            self._digests[id(records)] = records_digest(records)
        return self._digests[id(records)]

    def evaluation(self, item: EvaluationSet) -> list[Record]:
        """Return the records of an evaluation set."""
        return self.read(item.data, item.image_folder, f"the evaluation set {item.name!r}", item.image_place)

    def calibration(self, task: Task) -> list[Record]:
        """Return the task's calibration data; without any, what it trains on but for replayed samples."""
        if task.calibration is None:
            return self._own_training(task)
        what = f"the calibration data of task {task.name!r}"
        return self._read_learnt(task.calibration, task, what)

    def training(self, task: Task) -> list[Record]:
        """Return the task's training data: its own, injected samples, replayed ones of earlier tasks and of safety.

        Raises:
            ValueError: the injection or the safety replay asks for more samples than there are.
        """
        if task.name not in self._train:
            own, earlier, safety = self._own_training(task), self._earlier(task), self._safety()
            shares = [None if item is None else item.share for item in (self._replay, self._safety_replay)]
            counts = replay_counts(len(own), [(len(earlier), shares[0]), (len(safety), shares[1])])
            if any(counts):
                self.replay_counts[task.name] = counts
            replayed = [islice(cycle(memory), count) for memory, count in zip((earlier, safety), counts, strict=True)]
            self._train[task.name] = [*own, *replayed[0], *replayed[1]]
        return self._train[task.name]

    def check_task(self, task: Task, test: EvaluationSet, safety_sets: Sequence[EvaluationSet]) -> None:
        """Check the task's training and calibration data and keep its test data, and the safety sets, out of them.

        Raises:
            ValueError: a record without an answer, or records of the test data or of a safety set in the training or
                calibration data.
        """
        used = {f"the training data of task {task.name!r}": self.training(task)}
        if task.calibration is not None:
            used[f"the calibration data of task {task.name!r}"] = self.calibration(task)
        for what, records in used.items():
            for record in records:
                check_record(record, needs_answer=True)
            self.keep_apart(records, [test, *safety_sets], what)

    def check_mixed_in(self, safety_sets: Sequence[EvaluationSet]) -> None:
        """Keep the safety sets out of what is mixed into the training data."""
        if self._injection is not None and self._injection.ratio > 0:
            self.keep_apart(self._harmful(), safety_sets, "harmful_injection")
        if self._safety_replay is not None:
            self.keep_apart(self._safety(), safety_sets, "safety_replay")

    def keep_apart(self, records: Sequence[Record], sets: Sequence[EvaluationSet], what: str) -> None:
        """Refuse ``records`` that stand in a task's test set or in a safety set."""
        if not self._allow_overlap:
            names = {"task": "the test data of task {!r}", "safety": "the safety set {!r}"}
            tested = [item for item in sets if item.kind in names]
            refuse_overlap(
                {names[item.kind].format(item.name): self.evaluation(item) for item in tested}, records, what
            )

    def _own_training(self, task: Task) -> list[Record]:
        """The task's training data with the injected samples at the end."""
        if task.name not in self._own:
            what = f"the training data of task {task.name!r}"
            records = list(self._read_learnt(task.train, task, what))
            self._own[task.name] = records + self._draw_harmful(task.name, len(records))
        return self._own[task.name]

    def _earlier(self, task: Task) -> list[Record]:
        """What is remembered of the tasks before ``task``, the tasks in turn."""
        if self._replay is None:
            return []
        names = [item.name for item in self._tasks]
        memories = [self._remembered(item) for item in self._tasks[: names.index(task.name)]]
        return [record for turn in zip_longest(*memories) for record in turn if record is not None]

    def _remembered(self, task: Task) -> list[Record]:
        assert self._replay is not None
        records = self._own_training(task)
        if task.name not in self.replayed:
            generator = named_generator(self._seed, "replay", task.name)
            drawn = torch.randperm(len(records), generator=generator)[: self._replay.samples_per_task]
            self.replayed[task.name] = drawn.tolist()
        return [records[index] for index in self.replayed[task.name]]

    def _safety(self) -> list[Record]:
        """The records of the safety replay that all tasks get."""
        if self._safety_replay is None:
            return []
        replay = self._safety_replay
        records = self.read(replay.data, replay.image_folder, "safety_replay", replay.image_place)
        wanted = len(records) if self._safety_replay.samples is None else self._safety_replay.samples
        if wanted > len(records):
            raise ValueError(
                f"safety_replay: samples={wanted}, but only {len(records)} records were given; lower `samples`."
            )
        if not self.safety_replayed:
            generator = named_generator(self._seed, "safety_replay")
            self.safety_replayed = torch.randperm(len(records), generator=generator)[:wanted].tolist()
        return [records[index] for index in self.safety_replayed]

    def _harmful(self) -> list[Record]:
        assert self._injection is not None
        injection = self._injection
        return self.read(injection.data, injection.image_folder, "harmful_injection", injection.image_place)

    def _draw_harmful(self, task: str, size: int) -> list[Record]:
        if self._injection is None or self._injection.ratio == 0:
            return []
        harmful, count = self._harmful(), self._injection.count(size)
        if count > len(harmful):
            raise ValueError(
                f"harmful_injection: a ratio of {self._injection.ratio} of {size} records of {task!r} is {count}, but "
                f"only {len(harmful)} harmful records were given; lower the ratio."
            )
        generator = named_generator(self._seed, "injection", task)
        self.injected[task] = torch.randperm(len(harmful), generator=generator)[:count].tolist()
        return [harmful[index] for index in self.injected[task]]
