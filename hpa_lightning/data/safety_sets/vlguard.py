"""VLGuard: unsafe images, and safe images with a safe and an unsafe instruction each."""

from __future__ import annotations

from collections.abc import Iterator
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
from hpa_lightning.data.readers.row_fields import identity_of
from hpa_lightning.data.readers.table_files import Row, read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.values import shown

SUBSETS = ("unsafes", "safe_unsafes", "safe_safes", "all")

_KEYS = {
    "instruction": ("unsafes", ""),
    "safe_instruction": ("safe_safes", "-safe"),
    "unsafe_instruction": ("safe_unsafes", "-unsafe"),
}
"""Key of an instruction -> the subset it belongs to, the end of the record's id."""


@dataclass(frozen=True)
class VLGuard(RecordSet):
    """The pairs of instruction and response of VLGuard (Zong et al., ICML 2024, arXiv 2402.02207).

    Each record ends with the published response, a refusal where the instruction or the image is unsafe; evaluation
    cuts it off. Decision: both pairs of a safe image are records of their own (upstream's converter makes one
    conversation of two turns of them), with ``-safe`` and ``-unsafe`` at the end of the id.

    Args:
        folder: holds ``train.json`` and ``test.json``, and beside them the unpacked images as ``train/`` and ``test/``.
        split: ``"test"`` (1000 images, 442 of them unsafe) or ``"train"`` (2000, 1023 of them unsafe).
        subset: ``"unsafes"``: unsafe images, harmful; ``"safe_unsafes"``: safe images with unsafe instructions,
            harmful; ``"safe_safes"``: safe images with safe instructions, harmless; ``"all"``: every pair.
        image_folder: instead of ``<folder>/<split>``.

    Raises:
        ValueError: an unknown split or subset; when read: a missing file or image folder, a broken item.
    """

    folder: str
    split: Literal["test", "train"] = "test"
    subset: Literal["unsafes", "safe_unsafes", "safe_safes", "all"] = "unsafes"
    image_folder: str | None = None

    def __post_init__(self) -> None:
        check_option(self, "split", ("test", "train"))
        check_option(self, "subset", SUBSETS)

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        file = find_file([Path(self.folder) / f"{self.split}.json"], f"VLGuard file {self.split}.json")
        images = find_folder(
            [Path(self.image_folder or Path(self.folder) / self.split)],
            f"folder of VLGuard images (the unpacked {self.split}.zip)",
        )
        return [record for where, item in read_table(file) for record in self.records_of(item, images, where)]

    def records_of(self, item: Row, images: Path, where: str) -> Iterator[Record]:
        """Yield the records of one item of a file.

        Args:
            item: as the file has it.
            images: the folder that its image's path starts from.
            where: the item, for messages.

        Raises:
            ValueError: named by ``where``.
        """
        pairs, is_safe = item.get("instr-resp"), item.get("safe")
        if not isinstance(pairs, list) or not pairs or not isinstance(is_safe, bool):
            raise ValueError(
                f"{where}: 'instr-resp' is {shown(pairs)} and 'safe' is {shown(is_safe)}; expected a list of "
                "pairs, and true or false."
            )
        image = image_path(images, item, where)
        for pair in pairs:
            key = next((key for key in _KEYS if isinstance(pair, dict) and key in pair), None)
            if key is None or is_safe == (key == "instruction"):
                raise ValueError(
                    f"{where}: the pair {shown(pair)} of {'a safe' if is_safe else 'an unsafe'} image; expected a "
                    "response and an `instruction` (unsafe image), a `safe_instruction` or an `unsafe_instruction` "
                    "(safe image)."
                )
            subset, end = _KEYS[key]
            if self.subset in ("all", subset):
                response = None if pair.get("response") is None else text_of(pair, "response", where)
                identity = f"{identity_of(item, where, item['image'])}{end}"
                record = conversation(identity, text_of(pair, key, where), [image], response, where)
                schemes = {"category": "harmful_category", "subcategory": "harmful_subcategory"}
                yield replace(record, categories=categories_of(item, schemes, where))
