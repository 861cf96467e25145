"""Hugging Face folders of safetensors files, read one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

import hpa_lightning.modules.load_pretrained  # noqa: F401 - registers the timm-built architecture with the auto classes
from hpa_lightning.architectures import quantisation
from hpa_lightning.fuse.folder import file_inside, weights_left_out
from hpa_lightning.fuse.tensor_files import StoredTensor, TensorFiles, require_finite

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Checkpoint:
    """A model in a folder, its tensors under the names that they have in the built model.

    Keys are renamed as ``from_pretrained`` does (transformers' own mapping), so that folders written by earlier
    versions fit. Mappings that split or join tensors are refused.

    Args:
        folder: with config.json and one model.safetensors, or shards and their index.

    Attributes:
        left_out: weight files of the folder that are copies in another format and are not read.

    Raises:
        ValueError: no such folder, no configuration, no safetensors weights, a quantised model, weights of which it is
            not clear that they are the model's, or an index that names files outside the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{self.folder} holds no config.json; expected a Hugging Face model folder.")
        file_inside(self.folder, "config.json", "transformers")
        self.config = AutoConfig.from_pretrained(self.folder)
        if quantisation(self.config) is not None:
            raise ValueError(
                f"{self.folder} holds a quantised model: config.json has a quantization_config; expected float32, "
                "float16 or bfloat16. Where the weights are none and a program that merged them has left the entry, "
                "delete it."
            )
        files = self._weight_files()
        self.tensors = TensorFiles(self.folder, files)
        self.left_out = weights_left_out(self.folder, files, "model")
        self._key: dict[str, str] = {}

    def _weight_files(self) -> list[str]:
        """The files that ``from_pretrained`` reads, where there is no doubt which these are.

        Decision: a single file beside an index that names others is refused. transformers reads the single file, other
        programs the shards; one of the two is left from an earlier save, and only its owner knows which.
        """
        single, index = ((self.folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
        if not single and not index:
            raise ValueError(
                f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; expected safetensors weights. Load the "
                "model with from_pretrained and write it with save_pretrained."
            )
        files = _files_of_index(self.folder) if index else [SINGLE_FILE]
        if single and files != [SINGLE_FILE]:
            raise ValueError(
                f"{self.folder} holds {SINGLE_FILE} and {INDEX_FILE}, which names {', '.join(files[:3])}"
                f"{', ...' if len(files) > 3 else ''}: two sets of weights. transformers reads {SINGLE_FILE}; remove "
                "the set that is out of date."
            )
        if (self.folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{self.folder} holds a whole model and adapter_config.json, an adapter that transformers puts on the "
                "model when it loads it. Move the adapter to a folder of its own, or away if it is merged already."
            )
        named = getattr(self.config, "transformers_weights", None)
        if named is not None and named not in (SINGLE_FILE, INDEX_FILE):
            raise ValueError(
                f"{self.folder}/config.json says transformers_weights={str(named)[:200]!r}; expected the weights in "
                f"{SINGLE_FILE} or {INDEX_FILE}."
            )
        return files

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in: the configuration's, else that of its first floating-point tensor."""
        if isinstance(self.config.dtype, torch.dtype):
            return self.config.dtype
        floating = (place.dtype for place in self.tensors.stored.values() if place.dtype.is_floating_point)
        return next(floating, torch.float32)

    def bind(self, model: nn.Module) -> None:
        """Find the key of every tensor of ``model``, which may be on the meta device.

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
                    f"{self.folder}: {key} has to be split or joined with others to become {name}, which is not "
                    "done here. Load the model with from_pretrained and write it with save_pretrained(..., "
                    "save_original_format=False)."
                )
            found, wanted = self.tensors.stored[key].shape, tuple(expected[name].shape)
            if found != wanted:
                raise ValueError(f"{self.folder}: {key} has the shape {found}; its configuration says {wanted}.")
            if name in self._key:
                raise ValueError(
                    f"{self.folder} holds {self._key[name]} and {key}, which are one tensor, {name}; remove the one "
                    "that is out of date."
                )
            self._key[name] = key

    @property
    def processor_folders(self) -> list[Path]:
        """Where the processor's files are; those of a later folder take the place of an earlier one's."""
        return [self.folder]

    @property
    def names(self) -> list[str]:
        """Names of the model's tensors that are stored; known once bound."""
        return list(self._key)

    @property
    def unbuilt(self) -> list[str]:
        """Keys of the stored tensors that the configuration builds no tensor for; known once bound."""
        bound = set(self._key.values())
        return [key for key in self.tensors.stored if key not in bound]

    def unstored(self, model: nn.Module) -> list[str]:
        """Names of the parameters of a bound model of which no name is stored, and none of what they are tied to."""
        ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        ties = {name: group for group in tied_groups(model) for name in group}
        return [
            same[0]
            for same in names.values()
            if not any(one in self for name in same for one in (name, *ties.get(name, ())))
            and not any(pattern.search(name) for name in same for pattern in ignored)
        ]

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
        """Where the tensor of that name is."""
        return self.tensors.stored[self._key[name]]

    def tensor(self, name: str, device: str | torch.device = "cpu") -> Tensor:
        """Read the tensor of that name to a device."""
        return self.tensors.read(self._key[name]).to(device)

    def check_finite(self) -> None:
        """Check every tensor of the model.

        Raises:
            ValueError: naming one that holds NaN or infinity.
        """
        for name, key in self._key.items():
            require_finite(name, self.tensors.read(key), self.folder)

    def inputs(self) -> list[Path]:
        """The files that the checkpoint consists of."""
        return [self.folder / "config.json", *(self.folder / file for file in self.tensors.files)]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: no JSON, or no object, naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def tied_groups(model: nn.Module) -> list[set[str]]:
    """The weights of ``model`` that several layers share, each with all its names."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    groups: list[set[str]] = []
    for pair in tied.items():
        meant = [group for group in groups if group & {*pair}]
        groups = [group for group in groups if group not in meant] + [{*pair}.union(*meant)]
    return groups


def tied_weights(model: nn.Module) -> set[str]:
    """Names of the weights that two layers of ``model`` share."""
    return set().union(*tied_groups(model))


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


def _files_of_index(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; expected tensor -> file.")
    files = {file_inside(folder, name, str(index)).name for name in weight_map.values()}
    others = sorted(name for name in files if not name.endswith(".safetensors"))
    if others:
        raise ValueError(f"{index} names {others[0]}; expected safetensors files.")
    return sorted(files)
