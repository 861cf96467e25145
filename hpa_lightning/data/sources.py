"""The records behind a stream: read once, checked, with harmful samples injected and test data kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpa_lightning.data.formats import as_records
from hpa_lightning.data.loading import named_generator
from hpa_lightning.data.overlap import refuse_overlap
from hpa_lightning.data.records import Record, check_record, missing_images
from hpa_lightning.data.tasks import Data, EvaluationSet, HarmfulInjection, Task


class RecordSource:
    """Reads every file once and refuses what is broken, missing or seen in training.

    Args:
        seed: of the draw of injected samples.
        injection: harmful samples mixed into the training data.
        check_images: check that every image file exists when a file is read.
        allow_overlap: accept test records in the training or calibration data.

    Attributes:
        injected: task name -> indices into the harmful-injection data of the samples mixed into its training data.
    """

    def __init__(self, seed: int, injection: HarmfulInjection | None, check_images: bool, allow_overlap: bool) -> None:
        self._seed = seed
        self._injection = injection
        self._check_images = check_images
        self._allow_overlap = allow_overlap
        self._read: dict[str, list[Record]] = {}
        self._train: dict[str, list[Record]] = {}
        self.injected: dict[str, list[int]] = {}

    def read(self, data: Data, image_folder: str | None, what: str) -> list[Record]:
        """Return the records of ``data``; ``what`` names it in messages and is read once.

        Raises:
            ValueError: broken records or missing image files.
        """
        if what not in self._read:
            records = as_records(data, image_folder, what)
            missing = missing_images(records) if self._check_images else []
            if missing:
                where, path = missing[0]
                raise ValueError(
                    f"{what}: {len(missing)} image files are missing, the first in {where}: {path!r}; check "
                    "`image_folder`, or pass check_images=False to find out later."
                )
            self._read[what] = records
        return self._read[what]

    def evaluation(self, item: EvaluationSet) -> list[Record]:
        """Return the records of an evaluation set."""
        return self.read(item.data, item.image_folder, f"the evaluation set {item.name!r}")

    def calibration(self, task: Task) -> list[Record]:
        """Return the task's calibration data; without any, what it trains on."""
        if task.calibration is None:
            return self.training(task)
        return self.read(task.calibration, task.image_folder, f"the calibration data of task {task.name!r}")

    def training(self, task: Task) -> list[Record]:
        """Return the task's training data with the injected samples at the end.

        Raises:
            ValueError: the injection asks for more harmful samples than there are.
        """
        if task.name not in self._train:
            records = list(self.read(task.train, task.image_folder, f"the training data of task {task.name!r}"))
            self._train[task.name] = records + self._draw_harmful(task.name, len(records))
        return self._train[task.name]

    def check_task(self, task: Task, test: EvaluationSet, safety_sets: Sequence[EvaluationSet]) -> None:
        """Check the task's training and calibration data and keep its test data, and the safety sets, out of them.

        Raises:
            ValueError: a record without an answer, or test records in the training or calibration data.
        """
        used = {"its training data": self.training(task)}
        if task.calibration is not None:
            used["its calibration data"] = self.calibration(task)
        for what, records in used.items():
            for record in records:
                check_record(record, needs_answer=True)
            if not self._allow_overlap:
                refuse_overlap(self.evaluation(test), records, f"the test data of task {task.name!r}", what)
        if self._injection is not None and self._injection.ratio > 0:
            self.keep_apart(self._harmful(), safety_sets, "harmful_injection")

    def keep_apart(self, records: Sequence[Record], sets: Sequence[EvaluationSet], what: str) -> None:
        """Refuse ``records`` that stand in one of the safety ``sets``."""
        for item in sets:
            if item.kind == "safety" and not self._allow_overlap:
                refuse_overlap(self.evaluation(item), records, f"the safety set {item.name!r}", what)

    def _harmful(self) -> list[Record]:
        assert self._injection is not None
        return self.read(self._injection.data, self._injection.image_folder, "harmful_injection")

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
