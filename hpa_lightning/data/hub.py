"""Data sets that the library `datasets` loads, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpa_lightning.data.readers.row_fields import Reading
from hpa_lightning.data.readers.row_parsers import parse_rows, valid
from hpa_lightning.data.readers.turns import ImagePlace, check_image_place
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.values import cut


@dataclass(frozen=True)
class HubDataset(RecordSet):
    """Rows in the forms of a data file (see :func:`read_records`), through ``datasets.load_dataset``.

    With ``streaming`` the rows are read one after the other and no copy of the data set is made on the disk. The
    records are held in memory, images as the bytes of their files, so that ``limit`` is what keeps a large set small:
    the first rows are taken. Needs the package ``datasets`` (``pip install datasets``).

    Args:
        path: a data set on the hub, a folder (of ``save_to_disk``, too), or a builder such as ``"parquet"`` with
            ``data_files``.
        name: its configuration.
        split: its split.
        data_files: files of a builder.
        limit: most rows; all when ``None``.
        streaming: read rows as they come, instead of preparing the whole set on the disk.
        image_folder: that relative image paths in the rows start from.
        image_place: see :func:`read_records`.

    Raises:
        ValueError: when read: no package, no such data set or split, a broken row, no rows.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: str | list[str] | None = None
    limit: int | None = None
    streaming: bool = True
    image_folder: str = "."
    image_place: ImagePlace = "front"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"HubDataset: limit is {self.limit}; expected at least 1, or None for all rows.")

        check_image_place(self.image_place)

    def read(self) -> list[Record]:
        """Read the records, in the order of the data set."""
        reading = Reading(Path(self.image_folder), self.image_place)
        records = [valid(found) for found in parse_rows(self._rows(), self._where, reading)]
        if not records:
            raise ValueError(f"{self._where} holds no rows; expected at least one.")
        return records

    @property
    def _where(self) -> str:
        return f"{self.path}, {self.split}"

    def _load(self) -> Any:
        from datasets import Dataset, load_dataset, load_from_disk

        if any((Path(self.path) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            # Of `save_to_disk`, which `load_dataset` refuses, or takes for a folder of other files.
            saved = load_from_disk(self.path)
            if self.name is not None or self.data_files is not None:
                raise ValueError("a folder of `save_to_disk` has neither configurations nor data_files")
            if isinstance(saved, Dataset):
                return saved
            if self.split not in saved:
                raise ValueError(f"there is no split {self.split!r}; expected one of {', '.join(map(str, saved))}")
            return saved[self.split]
        return load_dataset(
            self.path, self.name, split=self.split, data_files=self.data_files, streaming=self.streaming
        )

    def _rows(self) -> Iterator[tuple[str, Any]]:
        try:
            import datasets  # noqa: F401 - whether it is there
        except ImportError as error:
            raise ValueError(
                "HubDataset needs the package `datasets`; install it with `pip install datasets`."
            ) from error
        try:
            loaded = self._load()
        except Exception as error:  # the library has many error classes, of the network among them
            raise ValueError(f"{self._where} cannot be loaded: {cut(error)}") from error
        rows = enumerate(islice(_undecoded(loaded), self.limit))
        number = -1
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # of a file that is broken further on, which streaming reads only now
                raise ValueError(f"{self._where}: the row after {number} cannot be read: {cut(error)}") from error
            yield f"{self._where}[{number}]", row


def _undecoded(loaded: Any) -> Any:
    """The data set with images as the bytes of their files, not as pixels."""
    from datasets import Image

    for column, feature in (loaded.features or {}).items():
        inner = getattr(feature, "feature", None)  # a list of images
        if isinstance(feature, Image):
            loaded = loaded.cast_column(column, Image(decode=False))
        elif isinstance(inner, Image):
            loaded = loaded.cast_column(column, type(feature)(Image(decode=False)))
    return loaded
