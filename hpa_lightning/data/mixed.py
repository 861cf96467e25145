"""Training data put together from several sources: all of one, a number of another, a share of a third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.data.readers.reader import as_records
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.sequences import ChosenRecords, JoinedRecords
from hpa_lightning.data.tasks import Data, check_share, replay_counts, source_of


@dataclass
class DataPart:
    """One source of a mixture.

    Args:
        data: path, records, or a published set.
        samples: records drawn of it, by seed without replacement; all when ``None``.
        share: fraction of the whole mixture that is of this part, in (0, 1): what was drawn is repeated, or cut, to
            reach it. ``None``: each once.
        name: in messages and in the result file; what the data are when empty.
        image_folder: folder that relative image paths start from; the file's own folder when ``None``.
        image_place: where in its turn the image of a mark ``<image>`` in a file goes.

    Raises:
        ValueError: fewer than one sample, or a share outside (0, 1).
    """

    data: Data
    samples: int | None = None
    share: float | None = None
    name: str = ""
    image_folder: str | None = None
    image_place: ImagePlace = "front"

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples of {self.source!r} is {self.samples}; expected at least 1, or None for all.")
        check_share(self.share, f"the share of {self.source!r}")

    @property
    def source(self) -> str:
        """The name, or what the data are."""
        return self.name or source_of(self.data)

    def __repr__(self) -> str:
        given = {"samples": self.samples, "share": self.share}
        reported = "".join(f", {key}={value}" for key, value in given.items() if value is not None)
        return f"DataPart({self.source!r}{reported})"


@dataclass
class MixedData(RecordSet):
    """The records of several parts, in one task: safety data mixed into a task, or helpful data into safety data.

    The task shuffles them, so that in every batch the shares hold on average. How many were drawn of each part is
    reported when they are read, and is in ``drawn`` and in the result file.

    Args:
        parts: one without a share at least.
        seed: of the draws; a part's draw depends on its place in the list.

    Raises:
        ValueError: no parts, shares of 1 together or of all parts; when read: fewer records than samples are asked for,
            or what the parts' readers raise.
    """

    parts: list[DataPart]
    seed: int = 0
    drawn: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shares = [part.share for part in self.parts if part.share is not None]
        if len(shares) == len(self.parts) or sum(shares) >= 1:
            raise ValueError(
                f"a mixture of {len(self.parts)} parts has the shares {shares}; expected a part without a share, and a "
                "sum below 1."
            )

    def read(self) -> Sequence[Record]:
        """Open all parts and draw; records of files stay on the disk."""
        opened: list[Sequence[Record]] = []
        kept: list[list[int]] = []
        for index, part in enumerate(self.parts):
            records = as_records(part.data, part.image_folder, part.source, part.image_place)
            wanted = len(records) if part.samples is None else part.samples
            if wanted > len(records):
                raise ValueError(f"{part.source} has {len(records)} records; {wanted} samples were asked for.")
            order = torch.randperm(len(records), generator=named_generator(self.seed, "mixture", index))
            opened.append(records)
            kept.append(list(range(wanted)) if wanted == len(records) else order[:wanted].tolist())
        counts = replay_counts(0, [(len(one), part.share) for one, part in zip(kept, self.parts, strict=True)])
        found = [
            ChosenRecords(records, [one[place % len(one)] for place in range(count)])
            for records, one, count in zip(opened, kept, counts, strict=True)
        ]
        self.drawn = [
            {"source": part.source, "samples": count, "records": len(records)}
            for part, count, records in zip(self.parts, counts, opened, strict=True)
        ]
        reported = ", ".join(f"{one['samples']} of {one['records']} records of {one['source']}" for one in self.drawn)
        rank_zero_info(f"Mixed data, {sum(counts)} samples: {reported}.")
        return JoinedRecords(found)
