"""Hugging Face folders of safetensors files, read one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

import hpa_lightning.modules.loading  # noqa: F401 - registers the timm-built architecture with the auto classes

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

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
    """Where one tensor lies: bytes ``start`` to ``end`` of ``file``."""

    file: str
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFiles:
    """The tensors of several safetensors files of one folder, by key; nothing is read before it is asked for.

    Raises:
        ValueError: a file that is missing or cut short, or a dtype that is none of a plain checkpoint's.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.stored: dict[str, StoredTensor] = {}
        for file in self.files:
            self.stored.update(_read_header(folder, file))

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


class Checkpoint:
    """A model in a folder, its tensors under the names that they have in the built model.

    Keys are renamed as ``from_pretrained`` does (transformers' own mapping), so that folders written by earlier
    versions fit. Mappings that split or join tensors are refused.

    Args:
        folder: with config.json and one model.safetensors, or shards and their index.

    Raises:
        ValueError: no such folder, no configuration, no safetensors weights, or a quantised model.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{self.folder} holds no config.json; expected a Hugging Face model folder.")
        self.config = AutoConfig.from_pretrained(self.folder)
        if getattr(self.config, "quantization_config", None) is not None:
            raise ValueError(f"{self.folder} holds a quantised model; expected float32, float16 or bfloat16.")
        index = self.folder / INDEX_FILE
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (self.folder / SINGLE_FILE).is_file():
            files = [SINGLE_FILE]
        else:
            raise ValueError(
                f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; expected safetensors weights. Load the "
                "model with from_pretrained and write it with save_pretrained."
            )
        self.tensors = TensorFiles(self.folder, files)
        self._key: dict[str, str] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in: the configuration's, else that of its first floating-point tensor."""
        if isinstance(self.config.dtype, torch.dtype):
            return self.config.dtype
        floating = (place.dtype for place in self.tensors.stored.values() if place.dtype.is_floating_point)
        return next(floating, torch.float32)

    def bind(self, model: nn.Module) -> None:
        """Find the key of every tensor of ``model``, which may lie on the meta device.

        Raises:
            ValueError: a tensor of another shape, or one that would have to be split or joined.
        """
        expected = model.state_dict()
        self._key = {}
        for key, (name, converted) in _renamed(model, self.tensors.stored).items():
            if name not in expected:
                continue
            if converted:
                raise ValueError(
                    f"{self.folder}: {key} has to be split or joined with others to become {name}, which fuse does not "
                    "do. Load the model with from_pretrained and write it with save_pretrained(..., "
                    "save_original_format=False)."
                )
            found, wanted = self.tensors.stored[key].shape, tuple(expected[name].shape)
            if found != wanted:
                raise ValueError(f"{self.folder}: {key} has the shape {found}; its configuration says {wanted}.")
            self._key[name] = key

    def __contains__(self, name: str) -> bool:
        return name in self._key

    def need(self, names: Iterable[str]) -> None:
        """Check that the tensors are there.

        Raises:
            ValueError: naming those that are not.
        """
        missing = [name for name in names if name not in self._key]
        if missing:
            raise ValueError(
                f"{self.folder} holds no tensor for {missing[:4]} ({len(missing)} in all); expected every weight of "
                f"{self.config.architectures}."
            )

    def stored(self, name: str) -> StoredTensor:
        """Where the tensor of that name lies."""
        return self.tensors.stored[self._key[name]]

    def tensor(self, name: str) -> Tensor:
        """Read the tensor of that name, on the CPU."""
        return self.tensors.read(self._key[name])

    def inputs(self) -> list[Path]:
        """The files that the checkpoint consists of."""
        return [self.folder / "config.json", *(self.folder / file for file in self.tensors.files)]


def rename_keys(model: nn.Module, keys: Sequence[str]) -> dict[str, str]:
    """Return key -> name in ``model``, as ``from_pretrained`` would read it."""
    return {key: name for key, (name, _) in _renamed(model, keys).items()}


def _renamed(model: Any, keys: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Return key -> (name in the model, whether it is one of several parts of that tensor or holds several)."""
    expected, prefix = model.state_dict(), model.base_model_prefix
    mapping = get_model_conversion_mapping(model)
    renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    result = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, pattern = key, None
        result[key] = name, pattern is not None
    return result


def _read_header(folder: Path, file: str) -> dict[str, StoredTensor]:
    """Return the places of the tensors of one file (safetensors: length of the header, header in JSON, bytes)."""
    path = folder / file
    if not path.is_file():
        raise ValueError(f"{folder} names {file} among its weights, but there is no such file.")
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path} is cut short or no safetensors file.")
        header = json.loads(opened.read(length))
    places = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {key} is stored as {entry['dtype']}; expected one of {sorted(_DTYPES)}.")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise ValueError(f"{path} is cut short: {key} should end at byte {end} of {size}.")
        places[key] = StoredTensor(file, start, end, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
    return places
