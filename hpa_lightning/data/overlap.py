"""Finding records that stand both in the training and in the test data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpa_lightning.data.images import EncodedImage, to_rgb
from hpa_lightning.data.records import Record, message_text


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


def refuse_overlap(held_out: Mapping[str, Sequence[Record]], used: Sequence[Record], used_name: str) -> None:
    """Refuse records of ``used`` that stand in data that are held out, by the name of each.

    Raises:
        ValueError: with counts and examples, for the first of ``held_out`` that shares any.
    """
    keys = [record_key(record) for record in used]
    for name, records in held_out.items():
        known = {record_key(record): record for record in records}
        shared = [(record, known[key]) for record, key in zip(used, keys, strict=True) if key in known]
        if shared:
            examples = ", ".join(f"{record.where} = {other.where}" for record, other in shared[:3])
            raise ValueError(
                f"{len(shared)} of {len(used)} records of {used_name} stand in {name} ({len(records)} records) "
                f"as well, with the same image and prompt: {examples}. Scores on seen records mean nothing; remove "
                "them, or pass allow_overlap=True."
            )


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
