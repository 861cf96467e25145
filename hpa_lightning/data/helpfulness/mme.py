"""MME: two questions about each picture, one to be answered with yes and one with no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.published_files import conversation, find_folder, text_of
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.metrics.tasks.grouped import SUBTASK
from hpa_lightning.parsing import read_text
from hpa_lightning.values import names, shown

SUBTASKS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
"""Ability -> its subtasks, in upstream's order; each has at most 200 points."""

_ABILITY = {subtask: ability for ability, subtasks in SUBTASKS.items() for subtask in subtasks}
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


@dataclass(frozen=True)
class MME(RecordSet):
    """The questions of MME (Fu et al., arXiv 2306.13394), to be scored by ``mme_score`` or ``mme_choice_score``.

    The questions about one picture are one :attr:`Record.group`; the categories are ``subtask`` and ``ability``
    (perception or cognition).

    Args:
        path: upstream's folder ``MME_Benchmark_release_version`` (``<subtask>/<name>.txt`` with lines
            ``question<TAB>Yes`` beside ``<name>.jpg``, or in ``questions_answers_YN/`` and ``images/``); or the hub's
            parquet file, or a pattern that fits several (``question_id``, ``image``, ``question``, ``answer``,
            ``category``).
        instruction: a line behind the question; upstream's questions end with "Please answer yes or no." already.

    Raises:
        ValueError: when read: a missing folder, file or picture, a broken line, an unknown subtask, an answer that is
            neither yes nor no, a picture without exactly two questions.
    """

    path: str
    instruction: str = ""

    def read(self) -> list[Record]:
        """Read the records, subtask after subtask; one warning names the subtasks that are missing."""
        rows = self._folder(Path(self.path)) if Path(self.path).is_dir() else self._tables(Path(self.path))
        records = [self._record(*row) for row in rows]
        counts = Counter((record.categories[SUBTASK], record.group) for record in records)
        if wrong := [pair for pair, count in counts.items() if count != 2]:
            (subtask, group), count = wrong[0], counts[wrong[0]]
            raise ValueError(
                f"MME: {len(wrong)} pictures do not have two questions, the first is {group!r} of {subtask} with "
                f"{count}; "
                "accuracy+ is over pairs."
            )
        if missing := [subtask for subtask in _ABILITY if subtask not in {subtask for subtask, _ in counts}]:
            rank_zero_warn(
                f"{self.path} holds {14 - len(missing)} of MME's 14 subtasks, without {names(missing)}: its points "
                "cannot be compared with published sums.",
                category=DataWarning,
            )
        return records

    def _record(self, subtask: str, group: str, image: Any, question: str, answer: str, where: str) -> Record:
        right = {"yes": "Yes", "no": "No"}.get(answer.strip().lower())
        if right is None:
            raise ValueError(f"{where}: the answer is {shown(answer)}; expected Yes or No.")
        prompt = f"{question}\n{self.instruction}" if self.instruction else question
        return replace(
            conversation(f"{subtask}/{group}", prompt, [image], where=where),
            choices=("Yes", "No"),
            answers=(right,),
            group=group,
            categories={SUBTASK: subtask, "ability": _ABILITY[subtask]},
        )

    def _folder(self, folder: Path) -> Iterator[tuple[str, str, Any, str, str, str]]:
        found = [subtask for subtask in _ABILITY if (folder / subtask).is_dir()]
        if not found:
            raise ValueError(
                f"{str(folder)!r} has none of MME's folders {names(_ABILITY)}; expected one for a subtask."
            )
        for subtask in found:
            texts = folder / subtask
            if not any(texts.glob("*.txt")):
                texts = find_folder([texts / "questions_answers_YN"], f"folder of MME's questions of {subtask}")
            pictures = [folder / subtask / "images", folder / subtask]
            files = sorted(texts.glob("*.txt"))
            if not files:
                raise ValueError(f"{str(texts)!r} holds no questions; expected <name>.txt for each picture.")
            for file in files:
                where = f"{subtask}/{file.name}"
                places = [place / f"{file.stem}{suffix}" for place in pictures for suffix in _SUFFIXES]
                image = next((place for place in places if place.is_file()), None)
                if image is None:
                    raise ValueError(f"{where}: there is no picture {file.stem}.jpg or .png beside it or in images/.")
                for number, line in enumerate(read_text(file).strip().split("\n"), start=1):
                    question, tab, answer = line.rstrip("\r").rpartition("\t")
                    if not tab or not question.strip():
                        raise ValueError(
                            f"{where}, line {number}: {shown(line)}; expected a question, a tab and Yes or No."
                        )
                    yield subtask, file.stem, str(image), question.strip(), answer, f"{where}, line {number}"

    def _tables(self, pattern: Path) -> Iterator[tuple[str, str, Any, str, str, str]]:
        files = sorted(pattern.parent.glob(pattern.name)) if pattern.parent.is_dir() else []
        if not files:
            raise ValueError(f"there is no MME folder or file {str(pattern)!r}; expected one, or a pattern of files.")
        for file in files:
            for where, row in read_table(file):
                subtask = text_of(row, "category", where)
                if subtask not in _ABILITY:
                    raise ValueError(f"{where}: the category is {shown(subtask)}; expected one of {names(_ABILITY)}.")
                group = Path(text_of(row, "question_id", where)).name
                image = image_of_cell(row.get("image"), file.parent, where)
                question, answer = text_of(row, "question", where), text_of(row, "answer", where)
                yield subtask, group, image, question, answer, where
