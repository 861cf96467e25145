"""One of two models that are compared: its weights, one tensor at a time, and itself when prompts run through it."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpa_lightning import functional as F
from hpa_lightning.exporting.source import TunedCheckpoint
from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.checkpoint import tied_groups
from hpa_lightning.fuse.opening import open_checkpoint, warn_of_left_out, warn_of_unbuilt
from hpa_lightning.fuse.processor_files import read_processor
from hpa_lightning.fuse.streaming import empty_model
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.modules.moe_lora import has_mixtures

_MODEL = "model."  # what a module's checkpoint puts before the names of its Hugging Face model
_LORA = re.compile(r"\.lora_[A-Za-z_]+\.")


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a model belong.

    Args:
        prefix: dotted name of the list of decoder blocks.
        count: how many blocks there are.
        linears: name of every linear layer in them -> its block, counted from 1.
        ties: name of every weight that several layers share -> its other names.
    """

    prefix: str
    count: int
    linears: dict[str, int]
    ties: dict[str, tuple[str, ...]]


def layout_of(model: nn.Module, blocks: str | None = None) -> Layout:
    """Find the decoder blocks of a Hugging Face model, with adapters or without, and their linear layers."""
    prefix, modules = find_decoder_blocks(model, blocks)
    linears = {
        f"{prefix}.{index}.{name}".replace(".base_layer", ""): index + 1
        for index, block in enumerate(modules)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not _LORA.search(f"{name}.")
    }
    ties = {name: tuple(sorted(group - {name})) for group in tied_groups(model) for name in group}
    return Layout(prefix, len(modules), linears, ties)


class ComparedSide(ABC):
    """A model whose tensors are read by the names of its Hugging Face model, adapters merged.

    Attributes:
        path: where it is.
        layout: its decoder blocks.
        names: of its floating-point tensors.
    """

    path: Path
    layout: Layout
    names: list[str]

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Read one tensor, on the CPU."""

    @abstractmethod
    def processor(self) -> Any:
        """Load the processor.

        Raises:
            OSError, ValueError: there is none.
        """

    @abstractmethod
    def module(self, processor: Any) -> MLLMModule:
        """Build the model in float32, with that processor."""

    def holds(self, name: str) -> str | None:
        """The name under which a tensor is stored: its own, or that of a weight that it is tied to."""
        return next((one for one in (name, *self.layout.ties.get(name, ())) if one in self._stored), None)

    @cached_property
    def _stored(self) -> frozenset[str]:
        return frozenset(self.names)


class FolderSide(ComparedSide):
    """A Hugging Face folder, or a peft adapter on one.

    Args:
        path: of the model or the adapter.
        base: folder of the model that an adapter belongs to.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: what :class:`Checkpoint` and :class:`AdaptedCheckpoint` refuse, an adapter without a base, or
            weights that are not stored.
    """

    def __init__(self, path: Path, base: Path | None, blocks: str | None = None) -> None:
        self.path = path
        self._checkpoint = open_checkpoint(path, base)
        model = empty_model(self._checkpoint.config, self._checkpoint.dtype)
        self._checkpoint.bind(model)
        self._checkpoint.need(self._checkpoint.unstored(model))
        warn_of_left_out([self._checkpoint], writes=False)
        warn_of_unbuilt(self._checkpoint, "compared")
        self.layout = layout_of(model, blocks)
        stored = self._checkpoint.stored
        self.names = [name for name in self._checkpoint.names if stored(name).dtype.is_floating_point]

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name)

    def processor(self) -> Any:
        return read_processor(self._checkpoint)

    def module(self, processor: Any) -> MLLMModule:
        module = MLLMModule(model=str(self._checkpoint.folder), processor=processor)
        if isinstance(self._checkpoint, AdaptedCheckpoint):
            weights = module.model.state_dict()
            with torch.no_grad():
                for name in self._checkpoint.adapted:
                    weights[name].copy_(self._checkpoint.tensor(name))
        return module


class LightningSide(ComparedSide):
    """A checkpoint of Lightning; its tensors stay in the file until they are read.

    Args:
        path: the file.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: what :class:`TunedCheckpoint` refuses, or mixtures of LoRA experts.
    """

    def __init__(self, path: Path, blocks: str | None = None) -> None:
        self.path = path
        self._source = TunedCheckpoint.read(path)
        if self._source.unfinished:
            warnings.warn(f"{self._source.unfinished}; they are compared as they are.", stacklevel=3)
        module = self._source.module()
        if has_mixtures(module.model):
            raise ValueError(f"{path} holds mixtures of LoRA experts, which are no single weight; expected plain LoRA.")
        self.layout = layout_of(module.model, blocks)
        self._processor = module.processor
        self._scaling = {name: factors.scaling for name, factors in lora_layers(module.model)}
        weights: dict[str, Tensor] = self._source.content["state_dict"]
        self._keys = {
            key.removeprefix(_MODEL).replace(".base_layer.", "."): key
            for key, tensor in weights.items()
            if key.startswith(_MODEL) and not _LORA.search(key) and tensor.is_floating_point()
        }
        self._weights = weights
        self.names = list(self._keys)

    def tensor(self, name: str) -> Tensor:
        weight = self._weights[self._keys[name]]
        layer = name.removesuffix(".weight")
        if layer not in self._scaling or not name.endswith(".weight"):
            return weight
        a, b = (self._weights[f"{_MODEL}{layer}.lora_{factor}.default.weight"] for factor in "AB")
        return F.lora_update(a, b, self._scaling[layer]).add_(weight)

    def processor(self) -> Any:
        return self._processor

    def module(self, processor: Any) -> MLLMModule:
        return self._source.module()


def open_side(path: str | Path, base: str | Path | None = None, blocks: str | None = None) -> ComparedSide:
    """Open a model to compare.

    Args:
        path: a Hugging Face folder, a peft adapter's on ``base``, or a checkpoint of Lightning (``.ckpt``).
        base: of an adapter.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: nothing there, or what the kinds refuse.
    """
    path = Path(path)
    if path.suffix == ".ckpt":
        return LightningSide(path, blocks)
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}; expected a Hugging Face folder, a peft adapter or a .ckpt file.")
    return FolderSide(path, None if base is None else Path(base), blocks)
