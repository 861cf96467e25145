"""Tensors in safetensors files, by key, read one at a time from where they are."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.fuse.folder import file_inside
from hpa_lightning.parsing import distinct_keys

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is: bytes ``start`` to ``end`` of ``file``."""

    file: str
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFiles:
    """The tensors of several safetensors files of one folder, by key; nothing is read before it is asked for.

    Raises:
        ValueError: a file that is missing, cut short or none of the folder's, a tensor that is stored twice, tensors
            that share bytes, or a dtype that is none of a plain checkpoint's.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.stored: dict[str, StoredTensor] = {}
        for file in self.files:
            for key, place in _read_header(folder, file).items():
                if key in self.stored:
                    raise ValueError(f"{folder}: {key} is stored twice, in {self.stored[key].file} and in {file}.")
                self.stored[key] = place

    def read(self, key: str) -> Tensor:
        """Return the tensor in a memory of its own, on the CPU."""
        place = self.stored[key]
        if place.end == place.start:
            return torch.empty(place.shape, dtype=place.dtype)
        buffer = bytearray(place.end - place.start)
        with (self.folder / place.file).open("rb") as file:
            file.seek(place.start)
            file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=place.dtype).reshape(place.shape)


def require_finite(name: str, tensor: Tensor, source: Path) -> None:
    """Refuse NaN and infinity in a floating-point tensor.

    Raises:
        ValueError: naming the tensor.
    """
    if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, map(float, tensor.aminmax()))):
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name}: {count} of {tensor.numel()} values in {source} are not finite. The model has diverged or its "
            "file is damaged; take an earlier checkpoint."
        )


def _read_header(folder: Path, file: str) -> dict[str, StoredTensor]:
    """Return the places of the tensors of one file (safetensors: length of the header, header in JSON, bytes)."""
    path = file_inside(folder, file, str(folder))
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path} is cut short or not a safetensors file.")
        try:
            content = json.loads(opened.read(length), object_pairs_hook=distinct_keys)
            header = {key: entry for key, entry in content.items() if key != "__metadata__"}
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a safetensors file: {str(error)[:200]}") from error
    places = {}
    for key, entry in header.items():
        try:
            places[key] = _place(file, 8 + length, entry)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: {key[:200]} cannot be read: {type(error).__name__} {str(error)[:200]}"
            ) from error
        if places[key].end > size:
            raise ValueError(f"{path} is cut short: {key} should end at byte {places[key].end} of {size}.")
    _check_order(path, places, 8 + length, size)
    return places


def _check_order(path: Path, places: dict[str, StoredTensor], begin: int, size: int) -> None:
    """Check that the tensors stand one behind the other, as the format has it: what shares bytes is overwritten."""
    last, end = "the header", begin
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != end:
            what = "share bytes" if place.start < end else "have a gap between them"
            raise ValueError(f"{path}: {last[:200]} and {key[:200]} {what}; no safetensors file has that.")
        last, end = key, place.end
    if end != size:
        raise ValueError(f"{path}: {size - end} bytes stand behind the last tensor; no safetensors file has that.")


def _place(file: str, begin: int, entry: dict[str, Any]) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"it is stored as {str(entry['dtype'])[:60]}; expected one of {sorted(_DTYPES)}.")
    (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    whole = all(isinstance(number, int) and number >= 0 for number in (start, end, *shape))
    if not whole or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {start} to {end} are not those of a tensor {shape} of {entry['dtype']}.")
    return StoredTensor(file, begin + start, begin + end, shape, dtype)
