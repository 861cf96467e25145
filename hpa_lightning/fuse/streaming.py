"""A model of which one decoder block at a time is in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig

from hpa_lightning.architectures import auto_class_of
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.modules.blocks import find_decoder_blocks


def empty_model(config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """Build the model without memory for its parameters; buffers, which no checkpoint may hold, are computed.

    Raises:
        ValueError: the configuration is neither an image-text-to-text nor a causal language model's, or refused.
    """
    with init_empty_weights(include_buffers=False):
        found: nn.Module = auto_class_of(config).from_config(config, dtype=dtype).eval()
        return found


class StreamedModel:
    """A model whose decoder blocks are read when they are called and dropped when another one is.

    Everything outside the blocks is held. A block's forward reads its tensors first, so that whatever calls the blocks
    (whole forward passes, or a replay block by block) finds them; blocks whose forward is replaced cost nothing.

    Args:
        checkpoint: where the tensors are read from.
        device: where the model computes.

    Attributes:
        model: the model, in eval mode; the parameters of its blocks are on the meta device but for one block's.
        blocks: the decoder blocks.

    Raises:
        ValueError: the checkpoint lacks a tensor of the model, or one has another shape.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.model = empty_model(checkpoint.config, checkpoint.dtype)
        checkpoint.bind(self.model)
        prefix, self.blocks = find_decoder_blocks(self.model)
        self._loaded: int | None = None
        self._empty: list[tuple[nn.Module, str, nn.Parameter]] = []
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        self._load_outside(prefix)
        for index, block in enumerate(self.blocks):
            checkpoint.need(f"{prefix}.{index}.{name}" for name, _ in block.named_parameters())
            block.__dict__["forward"] = self._reading(block.forward, index, f"{prefix}.{index}.")

    def __enter__(self) -> StreamedModel:
        return self

    def __exit__(self, *exception: object) -> None:
        """Give all memory back at once; the blocks' forwards would hold it in a cycle."""
        self.drop_block()
        self.model.to("meta")
        for block in self.blocks:
            block.__dict__.pop("forward")

    def forward(self, batch: Mapping[str, Tensor]) -> None:
        """Run the model on one batch of the collator's ``train``; labels are left out."""
        self.model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)

    def drop_block(self) -> None:
        """Put the parameters of the block in memory back to the meta device."""
        for module, name, empty in self._empty:
            module._parameters[name] = empty
        self._empty, self._loaded = [], None

    def _reading(self, forward: Any, index: int, prefix: str) -> Any:
        @functools.wraps(forward)
        def read_and_run(*args: Any, **kwargs: Any) -> Any:
            if self._loaded != index:
                self.drop_block()
                self._read(self.blocks[index], prefix)
                self._loaded = index
            return forward(*args, **kwargs)

        return read_and_run

    def _read(self, block: nn.Module, prefix: str) -> None:
        for path, module in block.named_modules():
            inner = f"{prefix}{path}." if path else prefix
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    self._empty.append((module, name, parameter))
                    module._parameters[name] = self._parameter(f"{inner}{name}", parameter)
            self._read_buffers(module, inner)

    def _load_outside(self, prefix: str) -> None:
        inside = {id(module) for block in self.blocks for module in block.modules()}
        for path, module in self.model.named_modules():
            if id(module) in inside:
                continue
            inner = f"{path}." if path else ""
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and f"{inner}{name}" in self.checkpoint:
                    module._parameters[name] = self._parameter(f"{inner}{name}", parameter)
            self._read_buffers(module, inner)
        names = [name for name, parameter in self._outside(prefix) if parameter.is_meta]
        self.model.tie_weights(missing_keys=set(names))  # type: ignore[operator]
        self.checkpoint.need(name for name, parameter in self._outside(prefix) if parameter.is_meta)

    def _outside(self, prefix: str) -> list[tuple[str, nn.Parameter]]:
        parameters = self.model.named_parameters(remove_duplicate=False)
        return [(name, parameter) for name, parameter in parameters if not name.startswith(f"{prefix}.")]

    def _parameter(self, name: str, like: Tensor) -> nn.Parameter:
        return nn.Parameter(self.checkpoint.tensor(name, self.device).to(like.dtype), requires_grad=False)

    def _read_buffers(self, module: nn.Module, prefix: str) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None and f"{prefix}{name}" in self.checkpoint:
                module._buffers[name] = self.checkpoint.tensor(f"{prefix}{name}", self.device).to(buffer.dtype)
