"""SIUO: harmless images with harmless questions that together ask for something unsafe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpa_lightning.data.published_files import (
    categories_of,
    check_option,
    conversation,
    find_file,
    find_folder,
    image_path,
    text_of,
)
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.multiple_choice import with_choices

_FILES = {"generation": "siuo_gen.json", "choice": "siuo_mcqa.json"}


@dataclass(frozen=True)
class SIUO(RecordSet):
    """Safe inputs, unsafe output (Wang et al., NAACL 2025 findings, arXiv 2406.15279): 167 inputs, all of them harmful.

    A safe answer warns, and often helps as well; a judge that only knows refusals takes it for a successful attack.

    Decision: the prompt of ``"choice"`` is the question alone and the options are in ``Record.choices``, to be
    compared by likelihood. Upstream shows the options and asks for a letter.

    Args:
        folder: upstream's ``data``: holds ``siuo_gen.json`` and ``siuo_mcqa.json``, and the unpacked images in
            ``images/``.
        task: ``"generation"`` (``answers`` holds the reference answer, a safe one) or ``"choice"`` (``answers`` holds
            the safe option).
        image_folder: instead of ``<folder>/images``.

    Raises:
        ValueError: an unknown task; when read: a missing file or image folder, a broken row.
    """

    folder: str
    task: Literal["generation", "choice"] = "generation"
    image_folder: str | None = None

    def __post_init__(self) -> None:
        check_option(self, "task", tuple(_FILES))

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        name = _FILES[self.task]
        file = find_file([Path(self.folder) / name], f"SIUO file {name}")
        images = find_folder([Path(self.image_folder or Path(self.folder) / "images")], "folder of SIUO images")
        records = []
        for where, row in read_table(file):
            prompt = text_of(row, "question", where)
            record = conversation(row.get("question_id", where), prompt, [image_path(images, row, where)], where=where)
            if self.task == "choice":
                record = with_choices(record, row.get("options"), row.get("correct_option"))
            else:
                record = replace(record, answers=(text_of(row, "reference_answer", where),))
            records.append(replace(record, categories=categories_of(row, {"category": "category"}, where)))
        return records
