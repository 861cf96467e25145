"""What is found in the pictures of records, which are opened a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from hpa_lightning.data.record import Record, open_image
from hpa_lightning.filtering.assessment import Assessment, Finding, worst

Assess = Callable[[list[Image.Image], list[str]], list[Finding]]
"""RGB pictures and where each is -> a finding for each."""


def picture_findings(records: Sequence[Record], assess: Assess, batch_size: int, workers: int) -> list[Finding]:
    """Return a finding for each record, of the worst of its pictures; one that cannot be opened is unreadable.

    Args:
        records: with their pictures.
        assess: what looks at them.
        batch_size: pictures that are in memory, and assessed, together.
        workers: threads that open pictures.
    """
    pictures = [(index, n, image) for index, record in enumerate(records) for n, image in enumerate(record.images)]
    found: list[list[Finding]] = [[] for _ in records]
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(pictures), batch_size):
            several = pictures[start : start + batch_size]
            opened = list(pool.map(lambda one: _opened(one[2], records[one[0]]), several))
            images, places, owners = [], [], []
            for (index, n, _), image in zip(several, opened, strict=True):
                if isinstance(image, Image.Image):
                    images.append(image)
                    places.append(f"image {n}")
                    owners.append(index)
                else:
                    found[index].append(Finding(Assessment.UNREADABLE, where=f"image {n}", detail=image))
            for index, finding in zip(owners, assess(images, places) if images else [], strict=True):
                found[index].append(finding)
    return [worst(findings) for findings in found]


def check_sizes(part: str, batch_size: int, workers: int) -> None:
    """Check the arguments of :func:`picture_findings`.

    Raises:
        ValueError: named by ``part``: below 1.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"{part}: batch_size is {batch_size}, workers {workers}; expected at least 1.")


def _opened(image: Any, record: Record) -> Image.Image | str:
    """The picture, or why there is none."""
    try:
        return open_image(image, record.where)
    except ValueError as error:
        return str(error)
