"""CVITDataModule: continual visual instruction tuning as one stream of tasks inside one fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from hpa_lightning.data.bad_records import SKIP, STOP, SkippingCollate, report_skipped, without_bad_records
from hpa_lightning.data.batch_order import TaskBatchSampler, TaskLoader, named_generator
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.evaluations import Evaluation
from hpa_lightning.data.fit_checks import check_fit, repeat_epoch_end
from hpa_lightning.data.images import MAX_PIXELS
from hpa_lightning.data.lengths import accumulated_batches, optimizer_steps
from hpa_lightning.data.mixed import MixedData
from hpa_lightning.data.pairs import NumberedRecords
from hpa_lightning.data.processor_settings import shared_settings
from hpa_lightning.data.readers.turns import ImagePlace, check_image_place
from hpa_lightning.data.record import Record
from hpa_lightning.data.resuming import described, differences, refuse_changes
from hpa_lightning.data.sources import RecordSource
from hpa_lightning.data.tasks import (
    KINDS,
    Data,
    EvaluationSet,
    HarmfulInjection,
    Replay,
    SafetyReplay,
    Task,
    TaskSpan,
    source_of,
)
from hpa_lightning.trainer_attributes import loaded_by_finder


class CVITDataModule(L.LightningDataModule):
    """Streams tasks in sequence through one ``trainer.fit``.

    The trainer needs ``reload_dataloaders_every_n_epochs=1`` and no ``max_epochs`` (or the sum of the tasks' epochs):
    which task is trained follows from the trainer's epoch, in :meth:`task_at_epoch` and nowhere else. The order of
    batches depends on seed, task name and epoch within the task alone; a checkpoint from the middle of an epoch
    continues with exactly the batches that are left.

    Args:
        tasks: the tasks.
        safety_sets: evaluation sets of kind ``"safety"``, ``"over_refusal"`` or ``"helpfulness"``.
        evaluations: published evaluations by their names, scored beside ``safety_sets``.
        processor: a Hugging Face processor, or the name or folder of one; the LightningModule's when ``None``.
        train_batch_size: records per device and micro-batch.
        eval_batch_size: records per batch in evaluation and calibration.
        num_workers: worker processes of every loader; images are opened in them.
        task_order: names of the tasks in the order of the stream (any subset); as given when ``None``.
        seed: of orders and draws.
        harmful_injection: harmful samples mixed into the training data; the choice is kept in ``injected``.
        harmful_calibration: path or records of harmful inputs for the safety calibration.
        harmful_calibration_answers: ``"model"``: the aligned model answers them, and its refusals are used;
            ``"given"``: their own answers are (refusals that one already has).
        harmful_image_folder: folder that their relative image paths start from; the file's own folder when ``None``.
        max_length: see :class:`MLLMCollator`.
        chat_template: see :class:`MLLMCollator`.
        max_image_pixels: see :class:`MLLMCollator`.
        image_place: where in its turn the image of a mark ``<image>`` in a file goes, see :func:`read_records`; tasks
            and sets may have their own.
        validate_during_fit: score the test sets of all tasks in Lightning's validation loop inside ``fit``. Off by
            default: ``TaskEvaluation`` scores at the tasks' ends, when adapters are merged.
        predict_data: path or records for ``trainer.predict``; all evaluation sets when ``None``.
        check_images: check in ``setup`` that every image file exists.
        allow_overlap: accept test records in the training or calibration data.
        replay: records of the earlier tasks mixed into the later tasks' training data; the choice is kept in
            ``replayed``.
        safety_replay: refused harmful inputs mixed into every task's training data; the choice is kept in
            ``safety_replayed``.
        bad_records: ``"stop"``: a task's training or calibration record that is broken, or that the processor cannot
            take, is an error. ``"skip"``: it is left out, counted, and named in a warning when the file is read or at
            the epoch's end. Test records are never skipped, since a score is over the whole set.
        check_ahead: how many records of each training and calibration file are checked in ``setup``, where there are
            too many to wait for all of them; the others are checked when they are trained on, the first fault ends the
            fit, and test records among them are not found. ``None``: all are.

    Raises:
        ValueError: names that are not unique, an unknown name in ``task_order``, safety sets of another kind, shares of
            replay that leave no room for the tasks' own data.
    """

    def __init__(
        self,
        tasks: list[Task],
        safety_sets: list[EvaluationSet] | None = None,
        processor: Any = None,
        train_batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        task_order: list[str] | None = None,
        seed: int = 0,
        harmful_injection: HarmfulInjection | None = None,
        harmful_calibration: Data | None = None,
        harmful_calibration_answers: Literal["model", "given"] = "model",
        harmful_image_folder: str | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
        validate_during_fit: bool = False,
        predict_data: Data | None = None,
        check_images: bool = True,
        allow_overlap: bool = False,
        replay: Replay | None = None,
        safety_replay: SafetyReplay | None = None,
        max_image_pixels: int = MAX_PIXELS,
        image_place: ImagePlace = "front",
        bad_records: str = STOP,
        check_ahead: int | None = None,
        evaluations: list[Evaluation] | None = None,
    ) -> None:
        super().__init__()
        check_image_place(image_place)
        for name, size in (("train_batch_size", train_batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1.")
        self.tasks = in_order(list(tasks), task_order)
        self.safety_sets = [*(safety_sets or ()), *(item.evaluation_set() for item in evaluations or ())]
        self.processor = processor
        self.train_batch_size = train_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.harmful_injection = harmful_injection
        self.harmful_calibration = harmful_calibration
        self.harmful_calibration_answers = harmful_calibration_answers
        self.harmful_image_folder = harmful_image_folder
        self.max_length = max_length
        self.chat_template = chat_template
        self.max_image_pixels = max_image_pixels
        self.image_place: ImagePlace = image_place
        self.validate_during_fit = validate_during_fit
        self.predict_data = predict_data
        self.check_images = check_images
        self.allow_overlap = allow_overlap
        self.replay = replay
        self.safety_replay = safety_replay
        if bad_records not in (STOP, SKIP):
            raise ValueError(f"bad_records is {bad_records!r}; expected {STOP!r} or {SKIP!r}.")
        if check_ahead is not None and (check_ahead < 1 or bad_records == SKIP):
            raise ValueError(
                f"check_ahead is {check_ahead} with bad_records={bad_records!r}; expected at least 1, and None with "
                f"{SKIP!r}, which must know of every record whether it can be used."
            )
        self.bad_records = bad_records
        self.check_ahead = check_ahead
        shares = [item.share for item in (replay, safety_replay) if item is not None and item.share is not None]
        if sum(shares) >= 1:
            raise ValueError(f"the shares of replay and safety_replay are {shares}; expected a sum below 1.")
        self._source = RecordSource(
            seed,
            harmful_injection,
            check_images,
            allow_overlap,
            self.tasks,
            replay,
            safety_replay,
            image_place,
            skip=bad_records == SKIP,
            ahead=check_ahead,
        )
        self._collator: MLLMCollator | None = None
        wrong = [item.name for item in self.safety_sets if item.kind == "task"]
        if wrong:
            raise ValueError(
                f"safety_sets {wrong} are of kind 'task'; expected 'safety', 'over_refusal' or 'helpfulness'."
            )
        names = [item.name for item in self.evaluation_sets()]
        if len(set(names)) != len(names):
            raise ValueError(f"names of tasks and safety sets are {names}; expected each name once.")

    @property
    def injected(self) -> dict[str, list[int]]:
        """Task name -> indices into the harmful-injection data of the samples mixed into its training data."""
        return self._source.injected

    @property
    def replayed(self) -> dict[str, list[int]]:
        """Task name -> indices into its training data (injected samples behind it) of what later tasks replay."""
        return self._source.replayed

    @property
    def safety_replayed(self) -> list[int]:
        """Indices into the safety-replay data of the records that every task trains on."""
        return self._source.safety_replayed

    def provenance(self) -> dict[str, Any]:
        """What was mixed into the training data and what the safety calibration asks, for the result file.

        Returns:
            Of what there is: ``"mixed"`` (of each task with :class:`MixedData`, how many samples of which source),
            ``"harmful_injection"`` (``source``, ``ratio``, and ``indices`` into the source by task),
            ``"replay"`` (``indices`` by task), ``"safety_replay"`` (``source``, ``indices``), ``"harmful_calibration"``
            (``source``). Indices are known once the data are set up.
        """
        found: dict[str, Any] = {}
        if self.harmful_injection is not None:
            source, ratio = source_of(self.harmful_injection.data), self.harmful_injection.ratio
            found["harmful_injection"] = {"source": source, "ratio": ratio, "indices": dict(self.injected)}
        if self.replay is not None:
            found["replay"] = {"indices": dict(self.replayed)}
        if self.safety_replay is not None:
            source = source_of(self.safety_replay.data)
            found["safety_replay"] = {"source": source, "indices": list(self.safety_replayed)}
        mixed = {task.name: task.train.drawn for task in self.tasks if isinstance(task.train, MixedData)}
        if mixed:
            found["mixed"] = mixed
        if self.harmful_calibration is not None:
            found["harmful_calibration"] = {"source": source_of(self.harmful_calibration)}
        return found

    # -- what callbacks ask for --------------------------------------------------------------------------------------

    @property
    def total_epochs(self) -> int:
        """Epochs of the trainer that the stream takes."""
        return sum(task.lightning_epochs for task in self.tasks)

    def task_at_epoch(self, epoch: int) -> TaskSpan:
        """Return the task that the trainer's epoch belongs to.

        Raises:
            ValueError: the stream has no such epoch.
        """
        first = 0
        for index, task in enumerate(self.tasks):
            last = first + task.lightning_epochs - 1
            if 0 <= epoch <= last:
                return TaskSpan(index, task, first, last)
            first = last + 1
        raise ValueError(f"epoch {epoch} is outside the stream of {len(self.tasks)} tasks, which has {first} epochs.")

    def task_steps(self, index: int) -> int:
        """Return the optimizer steps of a task on the trainer's settings: accumulation, devices, limits."""
        if self.trainer is None:
            raise ValueError("a task's steps depend on the trainer's settings, and there is no trainer yet.")
        spans = map(self.task_at_epoch, range(self.total_epochs))
        span = next(span for span in spans if span.index == index)
        epochs = range(span.first_epoch, span.last_epoch + 1)
        return optimizer_steps(self.trainer, len(self._batches(span, span.first_epoch)), epochs)

    def evaluation_sets(self) -> list[EvaluationSet]:
        """Return all tasks' test sets in stream order, then the safety sets, over-refusal, helpfulness."""
        sets = [
            EvaluationSet(
                task.name,
                "task",
                task.test,
                task.metric,
                task.max_new_tokens,
                task.image_folder,
                image_place=task.image_place,
            )
            for task in self.tasks
            if task.test is not None
        ]
        return sets + [item for kind in KINDS for item in self.safety_sets if item.kind == kind]

    def evaluation_dataloader(self, evaluation_set: EvaluationSet) -> DataLoader[Any]:
        """Return the ``generate`` batches of a set, in the order of its records."""
        return self._loader(self._source.evaluation(evaluation_set), self.collator.generate)

    def calibration_dataloader(self, task_index: int, size: int) -> DataLoader[Any]:
        """Return ``train`` batches of ``size`` records (fewer if there are fewer) for a task's Hessian.

        They are drawn by seed from ``Task.calibration``. Decision: without one, from the data that the task trains on,
        injected samples included, since a defender cannot distinguish them, and replayed ones left out: the Hessian is
        the task's own.
        """
        task = self.tasks[task_index]
        records = self._source.calibration(task)
        generator = named_generator(self.seed, "calibration", task.name)
        drawn = (records[int(index)] for index in torch.randperm(len(records), generator=generator))
        if self.bad_records == SKIP:
            what = f"calibration data of task {task.name!r}"
            return self._loader(without_bad_records(self.collator.train, drawn, size, what), self.collator.train)
        return self._loader(list(islice(drawn, size)), self.collator.train)

    def harmful_calibration_records(self) -> Sequence[Record]:
        """Return harmful inputs without answers, disjoint from every safety test set.

        Raises:
            ValueError: none were given, or one is in a safety test set.
        """
        if self.harmful_calibration is None:
            raise ValueError(
                "safety calibration needs harmful inputs; pass harmful_calibration= (a path or records) to the "
                "datamodule. The aligned model answers them itself, so no answers are needed."
            )
        data, folder = self.harmful_calibration, self.harmful_image_folder
        records = self._source.read_disjoint(data, folder, "harmful_calibration", self.safety_sets)
        return [Record(r.id, r.prompt_and_references()[0], r.images, (), r.source) for r in records]

    def refused_calibration_records(self) -> Sequence[Record] | None:
        """Return the same inputs with the answers that are in the data; ``None`` if the model is to answer them."""
        if self.harmful_calibration_answers == "model" or self.harmful_calibration is None:
            return None
        self.harmful_calibration_records()  # kept apart from the safety sets
        return self._source.read(self.harmful_calibration, self.harmful_image_folder, "harmful_calibration").records

    @property
    def collator(self) -> MLLMCollator:
        """The collator, made from ``processor`` or from the LightningModule's."""
        if self._collator is None:
            processor = self._processor()
            if isinstance(processor, str | Path):
                from hpa_lightning.modules.load_pretrained import load_processor  # modules import data

                processor = load_processor(processor, None, None)
            if processor is None:
                raise ValueError(
                    "the datamodule has no processor: pass processor=, or fit a LightningModule that has `processor`."
                )
            self._collator = MLLMCollator(processor, self.max_length, self.chat_template, self.max_image_pixels)
        return self._collator

    def _processor(self) -> Any:
        """What was given, else the LightningModule's, if it has one."""
        if self.processor is not None:
            return self.processor
        return getattr(getattr(self.trainer, "lightning_module", None), "processor", None)

    # -- Lightning's hooks -------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data that ``stage`` needs, and the trainer's settings.

        Raises:
            ValueError: broken records, missing images, references that a metric cannot read, records of a test or
                safety set in the training or calibration data.
            MisconfigurationException: trainer settings that a stream cannot run with.
        """
        if self._processor() is not None:
            self._source.check_text = self.collator.check_text
        if stage in ("fit", None):
            if self.trainer is not None:
                check_fit(self.trainer, len(self.tasks), self.total_epochs)
                if not self.validate_during_fit:
                    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            self._source.check_mixed_in(self.safety_sets)
            self._check_objectives()
            tests = {test.name: test for test in self.validation_sets()}
            for task in self.tasks:
                self._source.check_task(task, tests.get(task.name), self.safety_sets)
            if self.harmful_calibration is not None:
                self.harmful_calibration_records()
        if stage == "predict" and self.predict_data is not None:
            self._source.read(self.predict_data, None, "predict_data")
            return
        for item in self.evaluation_sets():
            self._source.evaluation(item)

    def _check_objectives(self) -> None:
        """Check that the module can train on the pairs of preference tasks."""
        pairs = [task.name for task in self.tasks if task.objective == "preference"]
        module = None if self.trainer is None else self.trainer.lightning_module
        if pairs and module is not None and not getattr(module, "trains_on_pairs", False):
            raise MisconfigurationException(
                f"task {pairs[0]!r} has the objective 'preference', which {type(module).__name__} does not train on; "
                "use a PreferenceModule (hpa_lightning.modules), or objective: answer to learn the chosen answers."
            )

    def __str__(self) -> str:
        """Name the tasks in their order. Lightning's own would go through the training data and fail."""
        return f"{type(self).__name__} of {len(self.tasks)} tasks: {', '.join(task.name for task in self.tasks)}"

    def train_dataloader(self) -> TaskLoader:
        """Return the loader of the task that the trainer's current epoch belongs to."""
        trainer = self.trainer
        epoch = trainer.current_epoch if trainer is not None else 0
        # After the last epoch Lightning asks once more when it restores a finished fit.
        span = self.task_at_epoch(min(epoch, self.total_epochs - 1))
        records, sampler = self._source.training(span.task), self._batches(span, epoch)
        if trainer is None:
            return self._task_loader(records, sampler, span.task)
        repeat_epoch_end(trainer)
        return self._task_loader(records, sampler, span.task, batches_seen=partial(_batches_seen, trainer))

    def _task_loader(
        self, records: Sequence[Record], sampler: TaskBatchSampler, task: Task, **settings: Any
    ) -> TaskLoader:
        collate: Any = self.collator.train
        if task.objective == "preference":
            collate, records = self.collator.pairs, NumberedRecords(records)
        if self.bad_records == SKIP:
            collate = SkippingCollate(collate, records)
            settings["skipped"] = partial(report_skipped, what=f"training data of task {task.name!r}")
        return TaskLoader(records, sampler, collate, self.num_workers, **settings)

    def _batches(self, span: TaskSpan, epoch: int) -> TaskBatchSampler:
        """Which records form which batch in an epoch of a task."""
        trainer, task = self.trainer, span.task
        accumulate = accumulated_batches(trainer, epoch) if trainer is not None else 1
        sampler = TaskBatchSampler(
            len(self._source.training(task)),
            self.train_batch_size,
            self.seed,
            task.name,
            batches=None if task.steps is None else task.steps * accumulate,
            first_epoch=span.first_epoch,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
        )
        sampler.set_epoch(epoch)
        return sampler

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the tasks' test sets; nothing inside ``fit`` unless ``validate_during_fit``."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [] if fitting and not self.validate_during_fit else self._loaders(self.validation_sets())

    def validation_sets(self) -> list[EvaluationSet]:
        """Return the sets behind :meth:`val_dataloader`: all tasks' test sets, in stream order."""
        return [item for item in self.evaluation_sets() if item.kind == "task"]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return one loader for each of :meth:`evaluation_sets`, in their order."""
        return self._loaders(self.evaluation_sets())

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loader of ``predict_data``, or of every evaluation set."""
        if self.predict_data is None:
            return self._loaders(self.evaluation_sets())
        records = self._source.read(self.predict_data, None, "predict_data").records
        return [self._loader(records, self.collator.generate)]

    def fingerprint(self) -> dict[str, Any]:
        """Say what is trained on, calibrated with and scored, and how.

        Two streams with the same fingerprint train and score alike. What makes no difference is left out: workers,
        batch sizes of evaluation, where the files are.

        Returns:
            Settings, and for every set of records their number and a digest of their content
            (:func:`~hpa_lightning.data.digests.records_digest`); a task's ``"train"`` is what it trains on, injected
            and replayed samples included.
        """
        source = self._source
        tasks: dict[str, dict[str, Any]] = {}
        for task in self.tasks:
            tasks[task.name] = {"epochs": task.epochs, "steps": task.steps, "train": source.training_digest(task)}
            if task.objective != "answer":
                tasks[task.name]["objective"] = task.objective
            if task.calibration is not None:
                tasks[task.name]["calibration"] = source.calibration_digest(task)
        sets = {
            item.name: {name: described(getattr(item, name)) for name in ("kind", "metric", "judge", "max_new_tokens")}
            | {"data": source.evaluation_digest(item)}
            | ({} if item.openings is None else {"openings": described(item.openings)})
            for item in self.evaluation_sets()
        }
        found: dict[str, Any] = {
            "train_batch_size": self.train_batch_size,
            "max_length": self.max_length,
            "tasks": tasks,
            "sets": sets,
        }
        if self._processor() is not None:
            found["chat_template"] = self.collator.template.described
            found["processor"] = self.collator.described_processor
        if self.harmful_calibration is not None:
            records = source.read(self.harmful_calibration, self.harmful_image_folder, "harmful_calibration")
            found["harmful_calibration"] = records.digest()
            found["harmful_calibration_answers"] = self.harmful_calibration_answers
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what must be the same on a resume: order of tasks, seed, injected and replayed samples, all data."""
        return {
            "tasks": [task.name for task in self.tasks],
            "seed": self.seed,
            "data": self.fingerprint(),
            "injected": self.injected,
            "replayed": self.replayed,
            "safety_replayed": self.safety_replayed,
            "replay_counts": self._source.replay_counts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint's stream with this one; what an older checkpoint does not name was not replayed.

        Raises:
            ValueError: a fit is resumed with another stream, and no :class:`AllowChanges` callback allows it.
        """
        if self.trainer is not None and (self.trainer.state.fn != "fit" or loaded_by_finder(self.trainer)):
            return  # a finder's file resumes nothing, and the batch size that it found is not that of the file
        now = self.state_dict()
        if "data" not in state_dict:
            rank_zero_warn(
                "The checkpoint is of an older version and holds no digests of its data; whether the files are the "
                "same is not checked."
            )
            del now["data"]
        elif "processor" in now["data"]:
            # Checkpoints of earlier versions tell nothing of it.
            saved = state_dict["data"].get("processor", {})
            one, now["data"]["processor"] = shared_settings(saved, now["data"]["processor"])
            state_dict = {**state_dict, "data": {**state_dict["data"], "processor": one}}
        before = {"replayed": {}, "safety_replayed": [], "replay_counts": {}, **state_dict}
        refuse_changes(self.trainer, differences(before, now), "stream")

    def _loaders(self, sets: Sequence[EvaluationSet]) -> list[DataLoader[Any]]:
        found = [self._source.evaluation(item) for item in sets]
        return [self._loader(records, self.collator.generate, self._own_part(records)) for records in found]

    def _own_part(self, records: Sequence[Record]) -> UnrepeatedDistributedSampler | None:
        """This process's samples. Lightning repeats some, so that all get equally many, which changes a score.

        A sharded model needs that, since its processes run in step; it is left to Lightning then.
        """
        trainer = self.trainer
        if trainer is None or isinstance(trainer.strategy, ModelParallelStrategy):
            return None
        if not 1 < trainer.world_size <= len(records):
            return None
        return UnrepeatedDistributedSampler(records, trainer.world_size, trainer.global_rank, shuffle=False)

    def _loader(self, records: Sequence[Record], collate: Any, sampler: Any = None) -> DataLoader[Any]:
        return DataLoader(
            records,  # type: ignore[arg-type]
            batch_size=self.eval_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            generator=torch.Generator(),  # loaders draw a seed for their workers; training must not depend on it
        )


def in_order(tasks: list[Task], order: list[str] | None) -> list[Task]:
    """Return the tasks that are named, in that order; all of them as they are when ``None``.

    Raises:
        ValueError: no tasks, or names that are unknown or not unique.
    """
    names = [task.name for task in tasks]
    if not tasks:
        raise ValueError("got no tasks; expected at least one.")
    if order is None:
        return tasks
    unknown = [name for name in order if name not in names]
    if unknown or len(set(order)) != len(order) or not order:
        raise ValueError(f"task_order is {order}; expected some or all of {names}, each at most once.")
    return [tasks[names.index(name)] for name in order]


def _batches_seen(trainer: L.Trainer) -> int:
    """Batches of the running epoch that were trained on; 0 between two epochs, where Lightning's count is stale."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    epochs: Any = trainer.fit_loop.epoch_progress.current
    is_running = epochs.started > epochs.processed
    return progress.processed if is_running else 0
