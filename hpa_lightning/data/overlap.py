"""Records that are in both the training and the test data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpa_lightning.data.images import EncodedImage, to_rgb
from hpa_lightning.data.record import Record, message_text


def record_key(record: Record) -> str:
    """Return a key that two records share if they show the same image references with the same prompt.

    Paths are compared as paths, encoded images by their bytes, other images in memory by their pixels; the prompt is
    the text of all turns but a final answer, with single spaces.
    """
    digest = hashlib.blake2b(digest_size=16)
    for image in record.images:
        digest.update(_image_key(image))
    for message in record.prompt_and_references()[0]:
        digest.update(f"\n{message['role']} {' '.join(message_text(message).split())}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def short_key(record: Record) -> int:
    """Return the first 64 bits of :func:`record_key`: a million records and a million others share one by chance
    in one of 20 million data sets."""
    return int(record_key(record)[:16], 16)


@dataclass(frozen=True)
class KeyedRecords:
    """Records, and the :func:`short_key` of each, of the first ones where there are fewer keys."""

    records: Sequence[Record]
    keys: Sequence[int]


def refuse_overlap(held_out: Mapping[str, KeyedRecords], used: KeyedRecords, used_name: str) -> None:
    """Refuse records of ``used`` that are in data that are held out, by the name of each.

    Raises:
        ValueError: with counts and examples, for the first of ``held_out`` that shares any.
    """
    keys = _array(used.keys)
    for name, held in held_out.items():
        held_keys = _array(held.keys)
        shared = np.flatnonzero(np.isin(keys, held_keys))
        if len(shared):
            pairs = [(int(place), int(np.flatnonzero(held_keys == keys[place])[-1])) for place in shared[:3]]
            examples = ", ".join(f"{used.records[a].where} = {held.records[b].where}" for a, b in pairs)
            raise ValueError(
                f"{len(shared)} of {len(used.records)} records of {used_name} are also in {name} ({len(held.records)} "
                f"records), with the same image and prompt: {examples}. Scores on seen records mean nothing; "
                "remove them, or pass allow_overlap=True."
            )


def _array(keys: Sequence[int]) -> np.ndarray:
    return np.asarray(keys, np.uint64)


def _image_key(image: Any) -> bytes:
    if isinstance(image, str | Path):
        return f"path {Path(image)}".encode("utf-8", "surrogatepass")
    if isinstance(image, EncodedImage):
        return b"encoded " + hashlib.blake2b(image.data).digest()
    array = np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)
    return (
        f"pixels {array.shape}".encode("utf-8", "surrogatepass")
        + hashlib.blake2b(np.ascontiguousarray(array).tobytes()).digest()
    )
