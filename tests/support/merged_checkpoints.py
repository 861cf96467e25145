"""Checkpoints to merge, and their merge in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.model_folders import tuned, write
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.merge import MergeSettings, merge_checkpoints

SETTINGS = {
    "linear": MergeSettings("linear", 0.3),
    "slerp": MergeSettings("slerp", 0.3),
    "task_arithmetic": MergeSettings("task_arithmetic", 0.3, scale=0.8),
    "ties": MergeSettings("ties", 0.3, density=0.4),
    "ties of peft": MergeSettings("ties", 0.3, density=0.4, convention="peft"),
    "dare_linear": MergeSettings("dare_linear", weights=(0.9, 0.4), density=0.6, seed=4),
    "dare_ties": MergeSettings("dare_ties", 0.6, density=0.6),
}


def models(maker: Callable[[], tuple[Any, Any]], root: Path, size: float = 0.5) -> dict[str, Path]:
    """Folders of a model and of two that were tuned from it, in shards of different sizes."""
    processor = maker()[1]
    made = {"base": maker()[0], "task": tuned(maker()[0], 1, size), "safety": tuned(maker()[0], 2, size)}
    shards = {"base": "100MB", "task": "60KB", "safety": "35KB"}
    return {name: write(root / name, model, processor, shards[name]) for name, model in made.items()}


def merge(folders: dict[str, Path], output: Path, settings: MergeSettings, **options: Any) -> dict[str, Any]:
    base = folders["base"] if settings.needs_base else None
    return merge_checkpoints(folders["task"], folders["safety"], output, base, settings=settings, **options)


def tiny_llama(vocabulary: int = 48, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=tied, **sizes)).eval()


def changed(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], None], **config: Any) -> Path:
    """A copy of a folder whose tensors, in one file, are changed."""
    target.mkdir()
    tensors: dict[str, Tensor] = {}
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        elif not file.name.endswith(".index.json"):
            (target / file.name).write_bytes(file.read_bytes())
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    content = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(content))
    return target
