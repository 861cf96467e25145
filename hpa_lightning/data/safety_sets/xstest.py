"""XSTest: safe prompts that look unsafe, and unsafe ones beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpa_lightning.data.published_files import categories_of, check_option, conversation, find_file, text_of
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.values import shown

LABELS = ("safe", "unsafe")


@dataclass(frozen=True)
class XSTest(RecordSet):
    """The prompts of XSTest of one label (Röttger et al., NAACL 2024, arXiv 2308.01263), texts without images.

    Args:
        file: upstream's ``xstest_prompts.csv``, with the columns ``id``, ``prompt`` and ``label`` at least.
        label: ``"safe"`` (250 harmless prompts, for over-refusal) or ``"unsafe"`` (200 harmful ones).

    Raises:
        ValueError: an unknown label; when read: a missing file, a broken row.
    """

    file: str
    label: Literal["safe", "unsafe"] = "safe"

    def __post_init__(self) -> None:
        check_option(self, "label", LABELS)

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        records = []
        for where, row in read_table(find_file([Path(self.file)], "XSTest file")):
            label = text_of(row, "label", where)
            if label not in LABELS:
                raise ValueError(f"{where}: the label is {shown(label)}; expected one of {', '.join(LABELS)}.")
            if label == self.label:
                record = conversation(text_of(row, "id", where), text_of(row, "prompt", where), where=where)
                records.append(replace(record, categories=categories_of(row, {"type": "type"}, where)))
        return records
