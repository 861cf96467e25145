"""The benchmark's text model learns to see on safe data: one stage of it as a task, with what is asked of safety."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.evaluations import Evaluation
from hpa_lightning.data.readers import read_records
from hpa_lightning.data.record import Record, user_turn
from hpa_lightning.data.reply_openings import ReplyOpenings
from hpa_lightning.data.tasks import SafetyReplay, Task
from hpa_lightning.smol.picture_sentences import ASKED, SAID, picture_sentence
from hpa_lightning.smol.refusals import REFUSALS_BEGIN
from hpa_lightning.smol.request_forms import FORMS
from hpa_lightning.smol.smol_datamodule import built_tasks, calibration_data
from hpa_lightning.smol.stages import BATCH, SETTINGS, measured_sets, spread, stage_records
from hpa_lightning.values import names, shown

Stage = Literal["projector", "instructions", "safety", "preference"]

STAGE_OF: dict[Stage, str] = {
    "projector": "projector",
    "instructions": "visual_tuning",
    "safety": "safety_alignment",
    "preference": "safety_alignment_dpo",
}
"""The stage of :mod:`hpa_lightning.smol.stages` whose records and steps they have."""

TASK = "adaptation"
"""The name of the one task, whatever the stage, so that the runs of all stages and remedies compare."""


class SmolAdaptationDataModule(CVITDataModule):
    """One stage of the adaptation of the benchmark's aligned text model to pictures, with text and multimodal sets.

    The test sets are the same for every ``seed`` and every stage: ``adaptation`` (a sentence about a picture),
    ``harmful-text`` (text safety) and ``harmful-picture`` (multimodal safety), ``harmless-text`` and
    ``harmless-picture`` (over-refusal; left out with a warning where the folder was built without XSTest).

    ``adaptation`` is split by picture: it has pictures of the tasks' tests (:func:`told_pictures`), which no stage is
    trained on, the projector's neither. Some of the captions' stand beside the requests of ``harmful-picture`` too.

    Args:
        folder: of ``hpa-lightning benchmark build smol``.
        stage: what is trained on, see :data:`STAGE_OF`. ``"projector"``: sentences about pictures. ``"instructions"``:
            the same and harmless requests in words, nothing harmful. ``"safety"``: refusals and harmless requests in
            words and beside pictures, and sentences about pictures. ``"preference"``: the same as pairs, for a
            :class:`~hpa_lightning.modules.PreferenceModule`.
        seed: of the order of batches, and of what is drawn.
        steps: optimizer steps; the stage's own number when ``None``.
        test_size: pictures of ``adaptation``, in equal parts of the tasks.
        harm_size: requests of each set about harm.
        max_new_tokens: longest answer of every set.
        metric: of ``adaptation``. CIDEr weighs rare words most, but a sentence of the right form is worth something
            with a wrong word, too; ``"exact_match"`` asks for all of it.
        safety_size: with ``"instructions"``: samples of the safety alignment's (refusals, and harmless requests that
            are answered) that are mixed in (multi-task tuning); 0: none.
        safety_share: share of the training samples that are of them; each once when ``None``.
        train_batch_size: samples of one step.
        eval_batch_size: samples of one evaluation or calibration batch; larger ones are faster in bf16-mixed precision.
        num_workers: worker processes of the loaders.
        processor: see :class:`CVITDataModule`.
        harmful_calibration_answers: as in :class:`~hpa_lightning.smol.SmolDataModule`.
        openings: judge safety and over-refusal a second time, as there; it costs a third of the answers' time.
        evaluations: published evaluations by their names, scored beside the benchmark's own sets.

    Raises:
        ValueError: no built folder, one without sentences about pictures, an unknown stage, sizes below 1, or a safety
            set mixed into another stage.
    """

    def __init__(
        self,
        folder: str,
        stage: Stage = "instructions",
        seed: int = 0,
        steps: int | None = None,
        test_size: int = 100,
        harm_size: int = 40,
        max_new_tokens: int = 24,
        metric: str = "cider",
        safety_size: int = 0,
        safety_share: float | None = None,
        train_batch_size: int = BATCH,
        eval_batch_size: int = 50,
        num_workers: int = 0,
        processor: Any = None,
        harmful_calibration_answers: Literal["model", "given"] = "model",
        openings: bool = False,
        evaluations: list[Evaluation] | None = None,
    ) -> None:
        if stage not in get_args(Stage):
            raise ValueError(f"stage is {shown(stage)}; expected one of {', '.join(get_args(Stage))}.")
        if safety_size and stage != "instructions":
            raise ValueError(
                f"safety_size is {safety_size} with stage={stage!r}; it is mixed into 'instructions' alone."
            )
        if safety_share is not None and not safety_size:
            raise ValueError(f"safety_share is {safety_share}, but safety_size is 0; expected a size to take it from.")
        settings = SETTINGS[STAGE_OF[stage]]
        steps = settings.steps if steps is None else steps
        sizes = {"steps": steps, "test_size": test_size, "harm_size": harm_size, "max_new_tokens": max_new_tokens}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1.")
        place = Path(folder)
        pictures = told_pictures(place, test_size)
        if not list((place / "tasks").glob("*/stages.json")):
            raise ValueError(f"{folder} has no sentences for the stages (tasks/*/stages.json); build it anew.")
        safety = place / "safety"
        task = Task(
            TASK,
            stage_records(place, _nothing, STAGE_OF[stage]),
            pictures,
            steps=steps,
            metric=metric,
            max_new_tokens=max_new_tokens,
            objective=settings.objective,
        )
        judged = ReplyOpenings(REFUSALS_BEGIN) if openings else None
        super().__init__(
            [task],
            [
                replace(one, max_new_tokens=max_new_tokens, openings=judged)
                for one in measured_sets(place, FORMS[:2], harm_size)
            ],
            processor=processor,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            **calibration_data(place, harmful_calibration_answers),
            safety_replay=(
                SafetyReplay(str(safety / "alignment.json"), safety_size, safety_share, folder) if safety_size else None
            ),
            evaluations=evaluations,
        )


def told_pictures(place: Path, size: int | None = None) -> list[Record]:
    """Return pictures of the tasks' tests, asked about and answered as the stages do, the tasks in turn.

    A whole build has 250 of clothes, 230 of Tux Paint, 250 digits, 240 words and 82 drawn shapes; the answers of the
    other tasks do not tell the sentence.

    Args:
        place: a built folder.
        size: how many, in equal parts of the tasks; all when ``None``.

    Raises:
        ValueError: no built folder, none of these tasks in it, or fewer pictures than that.
    """
    tasks = built_tasks(place)
    used = [name for name in SAID if name in tasks]
    if not used:
        raise ValueError(
            f"{place} has the tasks {names(tasks)}; expected some of {names(SAID)}, to ask about pictures."
        )
    told = [_told(name, read_records(str(tasks[name].test), str(place))) for name in used]
    if size is not None:
        shares = [len(range(number, size, len(used))) for number in range(len(used))]
        if short := [name for name, found, share in zip(used, told, shares, strict=True) if len(found) < share]:
            counts = {name: len(found) for name, found in zip(used, told, strict=True)}
            raise ValueError(f"a test of {size} pictures has too few of {names(short)}; {place} has {counts}.")
        told = [spread(found, share) for found, share in zip(told, shares, strict=True)]
    return [record for record in chain.from_iterable(zip_longest(*told)) if record is not None]


def _told(task: str, records: Sequence[Record]) -> list[Record]:
    """One record about each picture that the records ask about."""
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        asked[record.images[0]].append((record.prompt, record.answers[0]))
    found = []
    for number, (path, questions) in enumerate(asked.items()):
        sentence = picture_sentence(task, questions)
        if sentence is not None:
            question = random.Random(f"smol told {task} {number}").choice(ASKED)
            turn = user_turn(question, images=1)
            found.append(Record(f"told-{task}-{number:05d}", turn, (path,), (sentence,), source=f"{task}, {path}"))
    return found


def _nothing(name: str) -> Path:
    raise ValueError(f"{name} is not needed for records that a build has written.")
