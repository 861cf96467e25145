"""SPA-VL: questions about images with a chosen and a rejected answer, and the questions that evaluate them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpa_lightning.data.formats.tables import Row, read_table
from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.records import Record
from hpa_lightning.data.rows import check_option, conversation, text_of


@dataclass(frozen=True)
class SPAVL(RecordSet):
    """Rows of SPA-VL (Zhang et al., CVPR 2025, arXiv 2406.12030).

    The hub's parquet files hold the images. They stay encoded in memory, as large as the file (9 MB for the test
    files, 0.5 GB for each of the eight training files), and the collator decodes them anew for every batch; nothing is
    written to disk. Rows of JSON name image files.

    Args:
        files: a ``.parquet``, ``.json`` or ``.jsonl`` file, or a pattern such as ``data/train-*.parquet``, whose files
            are read in the order of their names. ``test/harm-*`` (265 questions) is harmful; ``test/help-*`` (265)
            measures helpfulness; the training and validation questions (93258 and 7000) are about harmful content.
        answer: ``"chosen"`` or ``"rejected"``: the record ends with that answer; ``None``: it ends with the question,
            as the test files have it.
        image_folder: folder that image paths start from; each file's own folder when ``None``.

    Raises:
        ValueError: an unknown answer; when read: no such files, a broken row, a column that is missing.
    """

    files: str
    answer: Literal["chosen", "rejected"] | None = None
    image_folder: str | None = None

    def __post_init__(self) -> None:
        if self.answer is not None:
            check_option(self, "answer", ("chosen", "rejected"))

    def read(self) -> list[Record]:
        """Read the records, in the order of the files."""
        return [record for path in self._paths() for record in self._records(path)]

    def _paths(self) -> list[Path]:
        path = Path(self.files)
        if path.is_file():
            return [path]
        paths = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
        if not paths:
            raise ValueError(f"there is no SPA-VL file {self.files!r}; expected a file, or a pattern that fits some.")
        return paths

    def _records(self, path: Path) -> Iterator[Record]:
        folder = path.parent if self.image_folder is None else Path(self.image_folder)
        for index, (where, row) in enumerate(read_table(path)):
            yield self._record(row, f"{path.stem}-{index}", folder, where)

    def _record(self, row: Row, place: str, folder: Path, where: str) -> Record:
        response = None if self.answer is None else text_of(row, self.answer, where)
        image = image_of_cell(row.get("image"), folder, where)
        return conversation(row.get("id", place), text_of(row, "question", where), [image], response, where)
