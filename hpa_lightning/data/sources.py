"""The records behind a stream: checked in one pass, with samples injected or replayed and test data kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, zip_longest

import torch

from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.data.first_pass import FirstPass, ReadRecords
from hpa_lightning.data.overlap import KeyedRecords, refuse_overlap, short_key
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record, check_pair, check_record, check_reference
from hpa_lightning.data.sequences import ChosenRecords, JoinedRecords
from hpa_lightning.data.tasks import (
    Data,
    EvaluationSet,
    HarmfulInjection,
    Replay,
    SafetyReplay,
    Task,
    check_evaluable,
    replay_counts,
)
from hpa_lightning.metrics.scoring import metric_of


class RecordSource:
    """Reads every file once and refuses what is broken, missing or seen in training.

    Args:
        seed: of the draws of injected and replayed samples.
        injection: harmful samples mixed into the training data.
        check_images: check that every image file exists when a file is read.
        allow_overlap: accept test records in the training or calibration data.
        tasks: the stream, which knows what came before a task.
        replay: records of the earlier tasks mixed into the training data.
        safety_replay: refused harmful inputs mixed into the training data.
        image_place: of images in files that name no place of their own, see :func:`read_records`.
        skip: leave broken training and calibration records out, with one warning for each data set.
        ahead: how many records of each training file are checked before training, see :class:`FirstPass`.

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
        ahead: int | None = None,
    ) -> None:
        self._seed = seed
        self._skip = skip
        self._ahead = ahead
        self._injection = injection
        self._check_images = check_images
        self._allow_overlap = allow_overlap
        self._tasks = tasks
        self._replay = replay
        self._safety_replay = safety_replay
        self.image_place: ImagePlace = image_place
        self._read: dict[str, ReadRecords] = {}
        self._own: dict[str, Sequence[Record]] = {}
        self._train: dict[str, Sequence[Record]] = {}
        self._digests: dict[str, str] = {}
        self.check_text: Callable[[Record], None] | None = None
        self.injected: dict[str, list[int]] = {}
        self.replayed: dict[str, list[int]] = {}
        self.safety_replayed: list[int] = []
        self.replay_counts: dict[str, list[int]] = {}

    def read(
        self,
        data: Data,
        image_folder: str | None,
        what: str,
        image_place: ImagePlace | None = None,
        learnt: bool = False,
        checks: Sequence[Callable[[Record], None]] = (),
    ) -> ReadRecords:
        """Return the records of ``data``; ``what`` names it in messages and is read once.

        Args:
            data: a file, a set or records.
            image_folder: that relative image paths start from.
            what: the data set, for messages.
            image_place: see :func:`read_records`; the stream's when ``None``.
            learnt: whether it is training or calibration data: every record needs an answer, and may be skipped.
            checks: called with every record.

        Raises:
            ValueError: broken records or missing image files.
        """
        if what not in self._read:
            self._read[what] = FirstPass(
                what,
                checks if self.check_text is None else [*checks, self.check_text],
                self._check_images,
                needs_answer=learnt,
                keyed=not self._allow_overlap,
                skip=learnt and self._skip,
                ahead=self._ahead if learnt else None,
            ).read(data, image_folder, image_place or self.image_place)
        return self._read[what]

    def _read_training(self, task: Task) -> ReadRecords:
        what = f"the training data of task {task.name!r}"
        checks = [check_pair] if task.objective == "preference" else []
        return self.read(task.train, task.image_folder, what, task.image_place, learnt=True, checks=checks)

    def _read_calibration(self, task: Task) -> ReadRecords:
        assert task.calibration is not None
        what = f"the calibration data of task {task.name!r}"
        return self.read(task.calibration, task.image_folder, what, task.image_place, learnt=True)

    def _read_evaluation(self, item: EvaluationSet) -> ReadRecords:
        scorable = partial(check_evaluable, metric=metric_of(item))
        checks: list[Callable[[Record], None]] = [scorable]
        if item.kind not in ("safety", "over_refusal"):
            checks.insert(0, check_reference)
        what = f"the evaluation set {item.name!r}"
        return self.read(item.data, item.image_folder, what, item.image_place, checks=checks)

    def evaluation(self, item: EvaluationSet) -> Sequence[Record]:
        """Return the records of an evaluation set.

        Raises:
            ValueError: broken records, or references that the metric cannot read.
        """
        return self._read_evaluation(item).records

    def calibration(self, task: Task) -> Sequence[Record]:
        """Return the task's calibration data; without any, what it trains on but for replayed samples."""
        return self._own_training(task) if task.calibration is None else self._read_calibration(task).records

    def evaluation_digest(self, item: EvaluationSet) -> str:
        """Return the digest of :meth:`evaluation`."""
        return self._read_evaluation(item).digest()

    def calibration_digest(self, task: Task) -> str:
        """Return the digest of the task's own calibration data."""
        return self._read_calibration(task).digest()

    def training_digest(self, task: Task) -> str:
        """Return the digest of :meth:`training`."""
        if task.name not in self._digests:
            self._digests[task.name] = self._read_training(task).digest(self._mixed_in(task))
        return self._digests[task.name]

    def training(self, task: Task) -> Sequence[Record]:
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
            replayed = [
                ChosenRecords(memory, [index % len(memory) for index in range(count)])
                for memory, count in zip((earlier, safety), counts, strict=True)
            ]
            self._train[task.name] = JoinedRecords([own, *replayed])
        return self._train[task.name]

    def _mixed_in(self, task: Task) -> Sequence[Record]:
        """What of the task's training data is not its own: injected and replayed."""
        return self.training(task)[len(self._read_training(task).records) :]

    def check_task(self, task: Task, test: EvaluationSet | None, safety_sets: Sequence[EvaluationSet]) -> None:
        """Check the task's training and calibration data and keep its test data, and the safety sets, out of them.

        Raises:
            ValueError: a record without an answer, records that are no pairs mixed into a preference task, or records
                of the test data or of a safety set in the training or calibration data.
        """
        own, mixed_in = self._read_training(task), self._mixed_in(task)
        for record in mixed_in:
            check_record(record, needs_answer=True)
            if task.objective == "preference" and not record.rejected:
                raise ValueError(
                    f"{record.where} is mixed into the preference task {task.name!r} (replay or injection) and is no "
                    "pair; expected pairs alone. Tune on pairs in a fit of their own, or leave the replay out."
                )
        tests = [*([] if test is None else [test]), *safety_sets]
        self._refuse_or_drop_overlap(own, tests, f"the training data of task {task.name!r}", mixed_in)
        if task.calibration is not None:
            what = f"the calibration data of task {task.name!r}"
            self._refuse_or_drop_overlap(self._read_calibration(task), tests, what)

    def check_mixed_in(self, safety_sets: Sequence[EvaluationSet]) -> None:
        """Keep the safety sets out of what is mixed into the training data."""
        if self._injection is not None and self._injection.ratio > 0:
            self._refuse_or_drop_overlap(self._harmful(), safety_sets, "harmful_injection")
        if self._safety_replay is not None and not self._allow_overlap:
            safety = self._safety()
            self._refuse(KeyedRecords(safety, [short_key(record) for record in safety]), safety_sets, "safety_replay")

    def read_disjoint(
        self, data: Data, image_folder: str | None, what: str, sets: Sequence[EvaluationSet]
    ) -> Sequence[Record]:
        """Return the records of ``data``, of which none may be in a task's test set or in a safety set."""
        found = self.read(data, image_folder, what)
        self._refuse_or_drop_overlap(found, sets, what)
        return found.records

    def _refuse_or_drop_overlap(
        self, found: ReadRecords, sets: Sequence[EvaluationSet], what: str, mixed_in: Sequence[Record] = ()
    ) -> None:
        if not self._allow_overlap:
            self._refuse(found.keyed(mixed_in), sets, what)

    def _refuse(self, used: KeyedRecords, sets: Sequence[EvaluationSet], what: str) -> None:
        names = {
            "task": "the test data of task {!r}",
            "safety": "the safety set {!r}",
            "helpfulness": "the helpfulness set {!r}",
        }
        tested = [item for item in sets if item.kind in names]
        held_out = {names[item.kind].format(item.name): self._read_evaluation(item).keyed() for item in tested}
        refuse_overlap(held_out, used, what)

    def _own_training(self, task: Task) -> Sequence[Record]:
        """The task's training data with the injected samples at the end."""
        if task.name not in self._own:
            records = self._read_training(task).records
            self._own[task.name] = JoinedRecords([records, self._draw_harmful(task.name, len(records))])
        return self._own[task.name]

    def _earlier(self, task: Task) -> Sequence[Record]:
        """What is remembered of the tasks before ``task``, the tasks in turn."""
        if self._replay is None:
            return []
        names = [item.name for item in self._tasks]
        memories = [self._remembered(item) for item in self._tasks[: names.index(task.name)]]
        starts = accumulate(map(len, memories), initial=0)
        places = [range(start, start + len(memory)) for start, memory in zip(starts, memories, strict=False)]
        in_turn = [place for turn in zip_longest(*places) for place in turn if place is not None]
        return ChosenRecords(JoinedRecords(memories), in_turn)

    def _remembered(self, task: Task) -> Sequence[Record]:
        assert self._replay is not None
        records = self._own_training(task)
        if task.name not in self.replayed:
            generator = named_generator(self._seed, "replay", task.name)
            drawn = torch.randperm(len(records), generator=generator)[: self._replay.samples_per_task]
            self.replayed[task.name] = drawn.tolist()
        return ChosenRecords(records, self.replayed[task.name])

    def _safety(self) -> Sequence[Record]:
        """The records of the safety replay that all tasks get."""
        if self._safety_replay is None:
            return []
        replay = self._safety_replay
        records = self.read(replay.data, replay.image_folder, "safety_replay", replay.image_place).records
        wanted = len(records) if self._safety_replay.samples is None else self._safety_replay.samples
        if wanted > len(records):
            raise ValueError(
                f"safety_replay: samples={wanted}, but only {len(records)} records were given; lower `samples`."
            )
        if not self.safety_replayed:
            generator = named_generator(self._seed, "safety_replay")
            self.safety_replayed = torch.randperm(len(records), generator=generator)[:wanted].tolist()
        return ChosenRecords(records, self.safety_replayed)

    def _harmful(self) -> ReadRecords:
        assert self._injection is not None
        injection = self._injection
        return self.read(injection.data, injection.image_folder, "harmful_injection", injection.image_place)

    def _draw_harmful(self, task: str, size: int) -> Sequence[Record]:
        if self._injection is None or self._injection.ratio == 0:
            return []
        harmful, count = self._harmful().records, self._injection.count(size)
        if count > len(harmful):
            raise ValueError(
                f"harmful_injection: a ratio of {self._injection.ratio} of {size} records of {task!r} is {count}, but "
                f"only {len(harmful)} harmful records were given; lower the ratio."
            )
        generator = named_generator(self._seed, "injection", task)
        self.injected[task] = torch.randperm(len(harmful), generator=generator)[:count].tolist()
        return ChosenRecords(harmful, self.injected[task])
