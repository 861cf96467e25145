"""Stored answers: one JSON-lines file for each step and evaluation set, written by ``TaskEvaluation``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hpa_lightning.files import plain_name, write_text
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown

FOLDER = "predictions"
_NAME = re.compile(r"step_(\d+)_(.+)\.jsonl")


@dataclass(frozen=True)
class Predictions:
    """The answers to one evaluation set after one step.

    Args:
        step: 0-based index of the task after which they were given; -1: the aligned model.
        set: name of the evaluation set.
        rows: ``{"id", "prompt", "response", "references", "decoding"}`` of every sample, and ``"judge"`` and
            ``"verdict"`` where a judge has scored it, with ``"refusal"`` where it is a partial one.
        path: the file.
    """

    step: int
    set: str
    rows: tuple[dict[str, Any], ...]
    path: Path


def prediction_file(run: str | PathLike[str], step: int, set_name: str) -> Path:
    """Where the answers of a step and a set are in a run's folder.

    >>> prediction_file("run", -1, "figstep").as_posix()
    'run/predictions/step_00_figstep.jsonl'

    Raises:
        ValueError: a set's name that leads to another folder.
    """
    return Path(run) / FOLDER / f"step_{step + 1:02d}_{plain_name(set_name, 'the name of a set')}.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, all or none."""
    write_text(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))


def read_predictions(run: str | PathLike[str], sets: set[str] | None = None) -> Iterator[Predictions]:
    """Read a run's answers, by step and then by set.

    Args:
        run: the run's folder, which holds ``predictions``.
        sets: names of the sets to read; all of them when ``None``.

    Raises:
        ValueError: no answers, or a line that is no JSON object with a prompt and a response, or has something else
            than `TaskEvaluation` writes under a key that is read.
    """
    folder = Path(run) / FOLDER
    paths = sorted(path for path in folder.glob("step_*.jsonl") if _NAME.fullmatch(path.name))
    if not paths:
        raise ValueError(f"{folder} holds no answers; expected files of TaskEvaluation(keep_predictions=True).")
    for path in paths:
        match = _NAME.fullmatch(path.name)
        assert match is not None
        if sets is None or match[2] in sets:
            yield Predictions(int(match[1]) - 1, match[2], tuple(_rows(path)), path)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    # Answers hold what `str.splitlines` takes for an end of line, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
            raise ValueError(f"{path}, line {number}: expected an object with 'prompt' and 'response', both texts.")
        for key, (expected, fits) in _KINDS.items():
            if key in row and not fits(row[key]):
                raise ValueError(f"{path}, line {number}: {key!r} is {shown(row[key])}; expected {expected}.")
        yield row


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


#: Keys that rows may have -> what stands there.
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a text or a number", lambda value: isinstance(value, str | int | float)),
    **dict.fromkeys(("question", "judge", "refusal", "group"), ("a text", _is_text)),
    **dict.fromkeys(("images", "references", "choices"), ("a list of texts", _are_texts)),
    "categories": (
        "an object of texts",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
    **dict.fromkeys(
        ("verdict", "cut", "no_option"),
        ("true, false or null", lambda value: value is None or isinstance(value, bool)),
    ),
    "score": ("a number or null", lambda value: value is None or isinstance(value, int | float)),
    "log_likelihoods": ("a list of numbers", _are_numbers),
    "openings": ("a list of numbers", _are_numbers),
}
