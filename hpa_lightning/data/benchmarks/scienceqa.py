"""ScienceQA from its own files."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpa_lightning.data.published_files import conversation, find_file, find_folder, text_of
from hpa_lightning.data.readers.row_fields import text_in
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.metrics.tasks.options import option_references
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown


@dataclass(frozen=True)
class ScienceQA(RecordSet):
    """School questions of multiple choice, some of them with an image (Lu et al., NeurIPS 2022, arXiv 2209.09513).

    Decision: the prompt is the hint (``Context: ...``) if there is one, the question, and a line for each choice
    (``A. ...``), each on a line of its own, then :attr:`instruction`: the form of LLaVA's test file. The answer is the
    letter; the choice's text counts too (``answers`` holds both, unless the text is as another choice's letter), for
    ``option_accuracy``. Lecture and solution are left out.

    Args:
        folder: holds ``problems.json`` and ``pid_splits.json``; the images are ``images/<split>/<id>/<name>`` in it.
        split: a key of ``pid_splits.json``: ``train``, ``val``, ``test``, ``trainval``, ``minival``, ``minitest``.
        with_image: only the questions with an image (``True``), only those without (``False``), or both.
        image_folder: instead of ``<folder>/images``.
        instruction: the prompt's last line.

    Raises:
        ValueError: when read: a missing file or folder, an unknown split, a broken problem.
    """

    folder: str
    split: str = "train"
    with_image: bool | None = None
    image_folder: str | None = None
    instruction: str = "Answer with the option's letter from the given choices directly."

    def read(self) -> list[Record]:
        """Read the records, in the order of the split."""
        folder = Path(self.folder)
        problems = _object(folder / "problems.json")
        splits = _object(folder / "pid_splits.json")
        if not isinstance(splits.get(self.split), list):
            raise ValueError(
                f"pid_splits.json has no split {self.split!r}; it has {', '.join(map(str, splits))[:300]}."
            )
        records = []
        for identity in splits[self.split]:
            if not isinstance(identity, str | int):
                raise ValueError(f"pid_splits.json: {shown(identity)} in {self.split!r}; expected the id of a problem.")
            identity = str(identity)
            where = f"problems.json[{shown(identity)}]"
            problem = problems.get(identity)
            if not isinstance(problem, Mapping):
                raise ValueError(f"{where} is {shown(problem)}, and pid_splits.json names it; expected an object.")
            if self.with_image is None or self.with_image == bool(problem.get("image")):
                records.append(self._record(identity, problem, where))
        return records

    def _record(self, identity: str, problem: Mapping[str, Any], where: str) -> Record:
        choices, answer = problem.get("choices"), problem.get("answer")
        if (
            not isinstance(choices, list)
            or not 2 <= len(choices) <= 26
            or not all(isinstance(choice, str | int | float) for choice in choices)
        ):
            raise ValueError(f"{where}: the choices are {shown(choices)}; expected a list of two or more texts.")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise ValueError(f"{where}: the answer is {shown(answer)}; expected the number of a choice, from 0 on.")
        hint = text_in(problem, "hint", where).strip()
        lines = [f"Context: {hint}"] if hint else []
        lines.append(text_of(problem, "question", where))
        lines += [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
        images = [self._image(identity, problem, where)] if problem.get("image") else []
        letter = string.ascii_uppercase[answer]
        record = conversation(identity, "\n".join([*lines, self.instruction]), images, letter, where)
        letters = string.ascii_uppercase[: len(choices)]
        return replace(record, answers=option_references(letter, str(choices[answer]), letters))

    def _image(self, identity: str, problem: Mapping[str, Any], where: str) -> str:
        folder = find_folder([Path(self.image_folder or Path(self.folder) / "images")], "folder of ScienceQA images")
        # The problem's own split: trainval and the mini splits have no folders of theirs.
        return str(folder / text_of(problem, "split", where) / identity / text_of(problem, "image", where))


def _object(path: Path) -> Mapping[str, Any]:
    value = parse_json(read_text(find_file([path], f"ScienceQA file {path.name}")), path.name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{path.name} holds a {type(value).__name__}; expected an object.")
    return value
