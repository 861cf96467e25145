"""A multimodal model from its parts, and weights to start it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from hpa_lightning.checkpoints import checkpoint_fault, newest_checkpoint
from hpa_lightning.modules.osf import OSF_KEPT, OSF_TRAINED
from hpa_lightning.modules.task_state import TASK_STATE, unfinished_weights
from hpa_lightning.modules.timm_mllm import TimmMLLM, build_timm_mllm
from hpa_lightning.modules.timm_processor import TimmProcessor
from hpa_lightning.modules.vision_towers import FeatureSelect
from hpa_lightning.values import names

_MODEL = "model."  # where MLLMModule keeps the model


@dataclass(frozen=True)
class ModelParts:
    """A vision tower and a causal language model to put together; the projector starts untrained.

    Arguments as in :func:`build_timm_mllm`, by name: hub names, folders, or configurations (random weights).

    Example:
        >>> ModelParts("openai/clip-vit-large-patch14-336", "meta-llama/Llama-2-7b-chat-hf").feature_layer
        -2
    """

    vision_tower: str | dict[str, Any]
    language_model: str | dict[str, Any]
    tokenizer: str | None = None
    pretrained_vision: bool = True
    vision_arguments: dict[str, Any] | None = None
    image_size: int | None = None
    image_token: str = "<image>"
    chat_template: str | None = None
    feature_layer: int = -2
    feature_select: FeatureSelect = "patch"
    image_processor: str | None = None
    image_grid: int | None = None
    remembered_pictures: int = 0

    def build(self, dtype: str = "float32", attn_implementation: str | None = None) -> tuple[TimmMLLM, TimmProcessor]:
        """Return the model and its processor."""
        return build_timm_mllm(**vars(self), dtype=dtype, attn_implementation=attn_implementation)


def load_weights_(model: nn.Module, source: str | Path) -> None:
    """Give ``model`` the weights of a Lightning checkpoint of an ``MLLMModule``.

    Args:
        model: of the same architecture, without adapters.
        source: the checkpoint, or the folder of a run, whose newest whole checkpoint is taken.

    Raises:
        ValueError: no checkpoint, a torn one, one from before a task's end, or weights that do not fit.
    """
    path = _checkpoint_of(Path(source))
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if reason := unfinished_weights(content.get(TASK_STATE)):
        raise ValueError(f"start_from {path}: {reason}.")
    state = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in (content.get("state_dict") or {}).items()
        if name.startswith(_MODEL)
    }
    if any(".lora_" in name for name in state):
        # Merged at a task's end, an adapter adds nothing; one that still does would be lost.
        state = _without_empty_adapters(state, path)
    if any(OSF_TRAINED in name for name in state):
        state = _without_merged_osf(state, path)
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    other = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    if missing or unknown or other:
        said = ((missing, "lacks"), (unknown, "holds unknown"), (other, "has other shapes of"))
        faults = "; ".join(f"{what} {len(found)} weights {names(found[:3])}" for found, what in said if found)
        raise ValueError(
            f"start_from {path} does not fit the {type(model).__name__}: it {faults}. Expected a checkpoint of a run "
            "with the same model, config or parts."
        )
    model.load_state_dict(state)
    rank_zero_info(f"The model starts from the weights of {path}.")


def _checkpoint_of(source: Path) -> Path:
    if source.is_dir():
        found, torn = newest_checkpoint([source])
        if found is None:
            raise ValueError(
                f"start_from {source} holds no whole checkpoint{': ' + '; '.join(torn) if torn else ''}; expected a "
                "checkpoint or the folder of a run with one. A folder of `hpa-lightning export` is given as model."
            )
        return found
    if not source.is_file():
        raise ValueError(f"start_from: there is no checkpoint {source}.")
    if fault := checkpoint_fault(source):
        raise ValueError(f"start_from {source} is unusable: {fault}.")
    return source


def _without_merged_osf(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The weights without OSF's parts, which add nothing once they are merged: what is trained is as decomposed."""
    for name, tensor in state.items():
        layer, found, part = name.partition(OSF_TRAINED)
        adapter, _, factor = part.partition(".")
        if found and not torch.equal(tensor, state[f"{layer}.{OSF_KEPT}{factor}_init.{adapter}"]):
            raise _not_merged(path)
    kept = (name for name in state if OSF_TRAINED not in name and f".{OSF_KEPT}" not in name)
    return {name.replace(".base_layer.", "."): state[name] for name in kept}


def _not_merged(path: Path) -> ValueError:
    return ValueError(
        f"start_from {path} holds adapters that are not merged; export it (`hpa-lightning export`) and give the folder "
        "as model."
    )


def _without_empty_adapters(state: dict[str, Any], path: Path) -> dict[str, Any]:
    filled = [name for name, tensor in state.items() if ".lora_B." in name and bool(tensor.any())]
    if filled or any(name.endswith((".lora_a", ".lora_b")) for name in state):
        raise _not_merged(path)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
