"""The data of the benchmark, part by part: pictures, tasks, records about harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from hpa_lightning.smol.drawn_pictures import to_square
from hpa_lightning.smol.harm_prompts import Find, harmful_prompts
from hpa_lightning.smol.picture_sentences import ASKED
from hpa_lightning.smol.picture_sources import Split, Stamp
from hpa_lightning.smol.record_rows import Row, prompt_row, question_row, row_of, training_row, write_lines, write_rows
from hpa_lightning.smol.request_forms import FORMS, RequestForms
from hpa_lightning.smol.safety_records import (
    alignment_records,
    calibration_records,
    development_records,
    harmful_test_records,
    harmless_test_records,
    injected_records,
    ordinary_records,
    refused_records,
)
from hpa_lightning.smol.task_examples import Example, Examples, SmolTask, stamp_name

Tick = Callable[[int], object]

ORDINARY = 600
"""Harmless questions to be mixed into tasks."""


def picture_path(task: SmolTask, example: Example) -> str:
    """Return where the picture of an example lies, from the benchmark's folder."""
    return f"pictures/{example.picture}" if task.stamps else f"tasks/{task.name}/images/{example.picture}"


def write_stamps(folder: Path, stamps: Sequence[Stamp], tick: Tick) -> Mapping[str, int]:
    """Write Tux Paint's pictures at the benchmark's size."""
    for stamp in stamps:
        with Image.open(stamp.path) as picture:
            picture.draft("RGB", (448, 448))
            to_square(picture).save(folder / stamp_name(stamp), quality=92)
        tick(1)
    return {"pictures": len(stamps)}


def write_task(folder: Path, task: SmolTask, examples: Examples, tick: Tick) -> Mapping[str, int]:
    """Write a task: ``train.json``, ``test.json``, ``stages.json``, and its pictures unless they are Tux Paint's.

    ``stages.json`` has one sentence about each picture that the task itself does not use, for the stages before.
    """
    written = set()
    (folder / "images").mkdir()
    for items in examples.values():
        for example in items:
            if example.make is not None and example.picture not in written:
                example.make().save(folder / "images" / example.picture)
                written.add(example.picture)
            tick(1)
    train, test, stages = examples["train"], examples["test"], examples["stages"]
    counts = {
        "train": write_rows(folder / "train.json", _rows(task, train, training_row)),
        "test": write_rows(folder / "test.json", _rows(task, test, question_row)),
    }
    told = {example.picture: example for example in stages if example.statement}
    rng = random.Random(f"smol stages {task.name}")
    rows = [
        training_row(f"stages-{task.name}-{number:05d}", rng.choice(ASKED), one.statement, picture_path(task, one))
        for number, one in enumerate(told.values())
    ]
    return {**counts, "stages": write_rows(folder / "stages.json", rows)}


def write_safety(
    folder: Path, find: Find, pictures: Mapping[Split, Sequence[str]], xstest: Path | None, tick: Tick
) -> Mapping[str, int]:
    """Write all records about harm: tests, calibration, alignment, ordinary questions, harmful injection.

    Args:
        folder: of the part, ``safety`` in the benchmark's folder.
        find: where the inputs are.
        pictures: harmless pictures by split, as paths from the benchmark's folder.
        xstest: XSTest's file; without it the harmful tests are AdvBench alone and there is no over-refusal.
            Nothing else depends on it.
        tick: is told how many records were written.
    """
    tests = RequestForms(pictures["test"], folder / "typeset" / "test", "test")
    stages = RequestForms(pictures["stages"])  # typeset requests are not read, and whatever is learnt of them is noise

    def place(path: str) -> str:
        return f"safety/{Path(path).relative_to(folder).as_posix()}" if Path(path).is_relative_to(folder) else path

    counts: dict[str, int] = {}
    for form in FORMS:
        sets = {
            f"harmful-{form}": harmful_test_records(find, form, tests, xstest),
            **({} if xstest is None else {f"harmless-{form}": harmless_test_records(xstest, form, tests)}),
        }
        if form in stages.names:
            sets[f"development-{form}"] = development_records(find, form, stages)
        for name, records in sets.items():
            counts[name] = write_lines(folder / f"{name}.jsonl", [prompt_row(record, place) for record in records])
            tick(counts[name])
    calibration = [prompt_row(record, place) for record in calibration_records(find, stages)]
    counts["calibration"] = write_lines(folder / "calibration.jsonl", calibration)
    answered = {
        "alignment": alignment_records(find, stages),
        "ordinary": ordinary_records(ORDINARY, stages),
        "refused": refused_records(find, stages),
        "injected": injected_records(find, stages),
    }
    for name, records in answered.items():
        counts[name] = write_rows(folder / f"{name}.json", [row_of(record, place) for record in records])
        tick(counts[name])
    removed = [found._asdict() for found in harmful_prompts(find).removed]
    counts["near-duplicates left out"] = write_lines(folder / "near_duplicates.jsonl", removed)
    return counts


def _rows(task: SmolTask, examples: Sequence[Example], row: Callable[[str, str, str, str], Row]) -> list[Row]:
    return [
        row(f"{task.name}-{number:05d}", example.question, example.answer, picture_path(task, example))
        for number, example in enumerate(examples)
    ]
