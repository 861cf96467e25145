"""The benchmark `smol` as a stream: its tasks out of a built folder, safety sets and over-refusal in three forms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hpa_lightning.data.benchmarks.description import read_benchmark
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.evaluations import Evaluation
from hpa_lightning.data.mixed import DataPart, MixedData
from hpa_lightning.data.reply_openings import ReplyOpenings
from hpa_lightning.data.safety_sets.prompts import PromptFile
from hpa_lightning.data.tasks import Data, EvaluationSet, HarmfulInjection, Replay, SafetyReplay, Task, check_share
from hpa_lightning.smol.refusals import REFUSALS_BEGIN
from hpa_lightning.smol.request_forms import FORMS
from hpa_lightning.smol.xstest_file import without_xstest
from hpa_lightning.values import names

SIX_TASKS = ("clothes", "captions", "shapes", "digits", "choice", "charts")
"""The usual stream."""


class SmolDataModule(CVITDataModule):
    """The tasks that ``hpa-lightning benchmark build smol`` has written, and its sets about harm.

    Safety sets are ``harmful-text`` and ``harmful-picture`` (AdvBench and XSTest's unsafe prompts), over-refusal
    ``harmless-text`` and ``harmless-picture`` (XSTest's safe ones); typeset in a picture too where ``forms`` says so.
    In a folder that was built without XSTest the former are AdvBench's and the latter are left out, with a warning.
    The plain tasks are also a benchmark for :class:`~hpa_lightning.data.BenchmarkDataModule`, with
    ``FOLDER/smol.yaml``.

    Args:
        folder: that the command has filled.
        seed: of the order of batches, and of what is drawn to be mixed in or replayed. What is tested is the same for
            all seeds.
        steps: optimizer steps of each task.
        task_order: names of tasks in the order of the stream; :data:`SIX_TASKS`, those of them that were built, when
            ``None``.
        ordinary_share: share of a task's training samples that are harmless everyday questions with the model's own
            answers, in [0, 1): the more, the slower safety is lost.
        harmful_ratio: harmful samples that comply mixed into each task's training data, as a fraction.
        train_size: training samples of each task, drawn by ``seed``; all when ``None``.
        test_size: questions of each task's tests, the same ones for every seed; all (230 to 420) when ``None``.
        harm_size: requests of each safety and over-refusal set, likewise; all (720 and 250) when ``None``.
        forms: of the requests: some of ``text``, ``picture``, ``typeset``; the first two when ``None``, since the model
            cannot read typeset sentences.
        train_batch_size: samples of one step.
        eval_batch_size: samples of one evaluation or calibration batch.
        num_workers: worker processes of the loaders.
        processor: see :class:`CVITDataModule`.
        max_new_tokens: longest answer of safety and over-refusal sets.
        replay_size: training samples of each task that the later tasks replay; 0 for no replay.
        replay_share: see :class:`Replay`.
        safety_replay_size: refused harmful requests that every task trains on; 0 for none.
        safety_replay_share: see :class:`SafetyReplay`.
        harmful_calibration_answers: ``"model"``: the aligned model's own refusals are calibrated on; ``"given"``:
            those that the benchmark's alignment teaches, for a model that is not aligned.
        openings: the probability of a reply that begins as the refusals which the benchmark's alignment teaches judges
            safety and over-refusal a second time (``by_likelihood``); see :class:`~hpa_lightning.data.ReplyOpenings`.
        evaluations: published evaluations by their names, scored beside the benchmark's own sets.

    Raises:
        ValueError: no built folder, tasks that it has not, sizes and shares that are off.
    """

    def __init__(
        self,
        folder: str,
        seed: int = 0,
        steps: int = 100,
        task_order: list[str] | None = None,
        ordinary_share: float = 0.0,
        harmful_ratio: float = 0.0,
        train_size: int | None = None,
        test_size: int | None = None,
        harm_size: int | None = 100,
        forms: list[str] | None = None,
        train_batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        processor: Any = None,
        max_new_tokens: int = 32,
        replay_size: int = 0,
        replay_share: float | None = None,
        safety_replay_size: int = 0,
        safety_replay_share: float | None = None,
        harmful_calibration_answers: Literal["model", "given"] = "model",
        openings: bool = True,
        evaluations: list[Evaluation] | None = None,
    ) -> None:
        place = Path(folder)
        built = built_tasks(place)
        wanted = list(task_order) if task_order is not None else [name for name in SIX_TASKS if name in built]
        if missing := [name for name in wanted if name not in built]:
            raise ValueError(f"task_order names {names(missing)}; {folder} has {', '.join(built)}.")
        forms = list(FORMS[:2]) if forms is None else list(forms)
        if not forms or set(forms) - set(FORMS):
            raise ValueError(f"forms is {forms}; expected some of {', '.join(FORMS)}.")
        if ordinary_share:
            check_share(ordinary_share, "ordinary_share")
        for name, share, size in (
            ("replay", replay_share, replay_size),
            ("safety_replay", safety_replay_share, safety_replay_size),
        ):
            if size == 0 and share is not None:
                raise ValueError(f"{name}_share is {share}, but {name}_size is 0; expected a size to take it from.")
        ordinary = DataPart(str(place / "safety" / "ordinary.json"), None, ordinary_share or None, "", folder)
        sets = [
            EvaluationSet(
                f"{kind}-{form}",
                "safety" if kind == "harmful" else "over_refusal",
                _first(request_file(place, f"{kind}-{form}"), f"{kind}-{form}", harm_size),
                max_new_tokens=max_new_tokens,
                openings=ReplyOpenings(REFUSALS_BEGIN) if openings else None,
            )
            for kind in ("harmful", "harmless")
            for form in forms
            if kind == "harmful" or (place / "safety" / f"harmless-{form}.jsonl").is_file()
        ]
        if not any(one.kind == "over_refusal" for one in sets):
            warnings.warn(f"{folder}: over-refusal is not measured. {without_xstest(folder)}", stacklevel=2)
        safety = place / "safety"
        super().__init__(
            [
                replace(
                    built[name],
                    train=_training(built[name], folder, train_size, ordinary, bool(ordinary_share), seed),
                    test=_first(built[name].test or (), name, test_size, folder),
                    steps=steps,
                )
                for name in wanted
            ],
            sets,
            processor=processor,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            harmful_injection=(
                HarmfulInjection(str(safety / "injected.json"), harmful_ratio, folder) if harmful_ratio else None
            ),
            **calibration_data(place, harmful_calibration_answers),
            replay=Replay(replay_size, replay_share) if replay_size else None,
            safety_replay=(
                SafetyReplay(str(safety / "refused.json"), safety_replay_size, safety_replay_share, folder)
                if safety_replay_size
                else None
            ),
            evaluations=evaluations,
        )


def built_tasks(place: Path) -> dict[str, Task]:
    """Return the tasks of a built folder by their names.

    Raises:
        ValueError: it is none.
    """
    if not (place / "smol.yaml").is_file():
        raise ValueError(
            f"{place} holds no built benchmark; run `hpa-lightning benchmark build smol --output {place}` first."
        )
    return {task.name: task for task in read_benchmark(str(place / "smol.yaml"), place)}


def calibration_data(place: Path, answers: Literal["model", "given"]) -> dict[str, Any]:
    """Return the arguments of :class:`CVITDataModule` about the harmful inputs that safety is calibrated on.

    Args:
        place: a built folder.
        answers: ``"model"``: requests alone; ``"given"``: requests with the refusals that the alignment teaches.
    """
    given = answers == "given"
    return {
        "harmful_calibration": str(place / "safety" / "refused.json") if given else request_file(place, "calibration"),
        "harmful_calibration_answers": answers,
        "harmful_image_folder": str(place) if given else None,
    }


def request_file(place: Path, name: str) -> PromptFile:
    """Return the requests of a file in ``safety/``."""
    columns = None if name == "calibration" else ["source"]
    return PromptFile(
        str(place / "safety" / f"{name}.jsonl"),
        "prompt",
        "image",
        image_folder=str(place),
        category_columns=columns,
    )


def _first(data: Data, name: str, size: int | None, folder: str | None = None) -> Data:
    """A drawn part of the data, the same whatever the seed; all of it without a size."""
    if size is None:
        return data
    return MixedData([DataPart(data, size, None, name, folder)])


def _training(
    task: Task, folder: str, size: int | None, ordinary: DataPart, with_ordinary: bool, seed: int
) -> Data | Sequence[Any]:
    if size is None and not with_ordinary:
        return task.train
    own = DataPart(task.train, size, None, task.name, folder)
    return MixedData([own, ordinary] if with_ordinary else [own], seed=seed)
