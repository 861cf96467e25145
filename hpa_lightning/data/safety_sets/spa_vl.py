"""SPA-VL: questions about images with a chosen and a rejected answer, and the questions that evaluate them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.published_files import check_option, conversation, text_of
from hpa_lightning.data.readers.table_files import Row, read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.pair_rows import Faulty, answer_of, files_of, read_pairs


@dataclass(frozen=True)
class SPAVL(RecordSet):
    """Rows of SPA-VL (Zhang et al., CVPR 2025, arXiv 2406.12030).

    The hub's parquet files hold the images. They stay encoded in memory, as large as the file (9 MB for the test
    files, 0.5 GB for each of the eight training files), and the collator decodes them again for every batch; nothing is
    written to disk. Rows of JSON name image files.

    Args:
        files: a ``.parquet``, ``.json`` or ``.jsonl`` file, or a pattern such as ``data/train-*.parquet``, whose files
            are read in the order of their names. ``test/harm-*`` (265 questions) is harmful; ``test/help-*`` (265)
            measures helpfulness; the training and validation questions (93258 and 7000) are about harmful content.
        answer: ``"chosen"`` or ``"rejected"``: the record ends with that answer; ``"pair"``: it is a preference pair of
            both; ``None``: it ends with the question, as the test files have it.
        image_folder: folder that image paths start from; each file's own folder when ``None``.
        faulty: of pairs, ``"stop"``: rows without two different answers are an error; ``"skip"``: they are left out and
            counted.

    Raises:
        ValueError: an unknown answer; when read: no such files, a broken row, a column that is missing.
    """

    files: str
    answer: Literal["chosen", "rejected", "pair"] | None = None
    image_folder: str | None = None
    faulty: Faulty = "stop"

    def __post_init__(self) -> None:
        if self.answer is not None:
            check_option(self, "answer", ("chosen", "rejected", "pair"))
        check_option(self, "faulty", ("stop", "skip"))

    def read(self) -> list[Record]:
        """Read the records, in the order of the files."""
        files = files_of(self.files, "SPA-VL file")
        if self.answer == "pair":
            return read_pairs(files, self._pair, self.faulty)
        return [record for path in files for record in self._records(path)]

    def _pair(self, row: Row, path: Path, index: int, where: str) -> tuple[Record, None]:
        chosen, rejected = (answer_of(row, key, where) for key in ("chosen", "rejected"))
        return replace(self._record(row, path, index, where, chosen), rejected=rejected), None

    def _records(self, path: Path) -> Iterator[Record]:
        for index, (where, row) in enumerate(read_table(path)):
            response = None if self.answer is None else text_of(row, self.answer, where)
            yield self._record(row, path, index, where, response)

    def _record(self, row: Row, path: Path, index: int, where: str, response: str | None) -> Record:
        folder = path.parent if self.image_folder is None else Path(self.image_folder)
        image = image_of_cell(row.get("image"), folder, where)
        identity = row.get("id", f"{path.stem}-{index}")
        return conversation(identity, text_of(row, "question", where), [image], response, where)
