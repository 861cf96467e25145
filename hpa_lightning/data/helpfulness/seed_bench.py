"""SEED-Bench: questions of multiple choice about pictures, by what they ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.helpfulness.asking import ASKINGS, INSTRUCTION, Asking, question_record
from hpa_lightning.data.published_files import check_option, find_file, find_folder, text_of
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.files import path_inside
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import names, shown

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_FOLDERS = ("SEED-Bench-image", "seed_bench_image")


@dataclass(frozen=True)
class SEEDBench(RecordSet):
    """The questions about images of SEED-Bench (Li et al., CVPR 2024, arXiv 2307.16125), 14233 of 19242.

    The questions about videos are left out, and one warning says how many. The category is the evaluation dimension
    (``question_type``). Upstream ranks the options' texts by their likelihood, the question shown alone
    (``ask: text``, ``choice_accuracy``); LLaVA shows the options and asks for a letter (``option_accuracy``).

    Args:
        file: upstream's ``SEED-Bench.json``: ``{"questions": [{"question_id", "question", "choice_a" to "choice_d",
            "answer", "data_type", "data_id", "question_type_id"}], "question_type": {name: id}}``.
        image_folder: holds the images by their ``data_id``; ``SEED-Bench-image`` beside the file when ``None``.
        ask: see :data:`~hpa_lightning.data.helpfulness.asking.Asking`.
        instruction: the prompt's last line; ``""`` for none.

    Raises:
        ValueError: an unknown option; when read: a missing file or folder, a broken question, no question about an
            image.
    """

    file: str
    image_folder: str | None = None
    ask: Asking = "letter"
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        check_option(self, "ask", ASKINGS)

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        path = find_file([Path(self.file)], "SEED-Bench file")
        content = parse_json(read_text(path), path.name)
        content = content if isinstance(content, dict) else {}
        questions, types = content.get("questions"), content.get("question_type")
        if not isinstance(questions, list) or not isinstance(types, Mapping):
            raise ValueError(
                f"{path.name}: expected an object with 'questions', a list, and 'question_type', an object."
            )
        if wrong := [number for number in types.values() if type(number) is not int]:
            raise ValueError(f"{path.name}: a number in 'question_type' is {shown(wrong[0])}; expected whole numbers.")
        dimensions = {number: name for name, number in types.items()}
        places = [Path(self.image_folder)] if self.image_folder else [path.parent / name for name in _FOLDERS]
        folder = find_folder(places, "folder of SEED-Bench images")
        records, left_out = [], Counter[str]()
        for index, row in enumerate(questions):
            where = f"{path.name}: questions[{index}]"
            if not isinstance(row, Mapping):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
            kind = text_of(row, "data_type", where)
            if kind == "image":
                records.append(self._record(row, dimensions, folder, where))
            elif kind == "video":
                left_out[kind] += 1
            else:
                raise ValueError(f"{where}: the data_type is {shown(kind)}; expected image or video (SEED-Bench 1).")
        if not records:
            raise ValueError(f"{path.name} has no question about an image ({left_out['video']} are about videos).")
        if left_out:
            rank_zero_warn(
                f"{path.name}: {left_out['video']} questions about videos are left out, {len(records)} about images "
                "are asked: the score is SEED-Bench's of images.",
                category=DataWarning,
            )
        return records

    def _record(self, row: Row, dimensions: Mapping[int, str], folder: Path, where: str) -> Record:
        answer = text_of(row, "answer", where)
        if answer not in ("A", "B", "C", "D"):
            raise ValueError(f"{where}: the answer is {shown(answer)}; expected A, B, C or D.")
        number = row.get("question_type_id")
        if type(number) is not int or number not in dimensions:
            expected = names(sorted(dimensions))
            raise ValueError(f"{where}: the question_type_id is {shown(number)}; expected one of {expected}.")
        image = str(path_inside(folder, text_of(row, "data_id", where), where))
        record = question_record(
            str(row.get("question_id", where)),
            text_of(row, "question", where),
            [text_of(row, key, where) for key in _CHOICES],
            "ABCD".index(answer),
            [image],
            self.ask,
            self.instruction,
            where,
        )
        return replace(record, categories={"dimension": dimensions[number]})
