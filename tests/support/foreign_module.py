"""A LightningModule and data that know nothing of this package, as users already have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader, Dataset

from hpa_lightning.modules import mean_gradients_

VOCABULARY, WIDTH, TOKENS = 23, 12, 7
ACCELERATOR = os.environ.get("HPA_TEST_ACCELERATOR", "cpu")
"""Where the guarantee tests of the registry run: `benchmarks/gpu.sh` sets it to "cuda"."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, WIDTH)
        self.up_proj = nn.Linear(WIDTH, 2 * WIDTH)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Tensor:
        mixed = torch.softmax(self.q_proj(hidden_states), dim=-1) * self.v_proj(hidden_states)
        hidden_states = hidden_states + scale * self.dropout(mixed)
        return hidden_states + self.down_proj(torch.nn.functional.silu(self.up_proj(hidden_states)))


class LanguageModel(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for block in self.layers:
            hidden = block(hidden, scale=0.5)
        return self.head(hidden)


class ForeignModule(L.LightningModule):
    """Somebody's own module: logs in its training step, builds its own optimizer, shards itself under FSDP2."""

    def __init__(self, model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            for block in (*self.model.layers, self.model):
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            mean_gradients_(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch["input_ids"])
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["input_ids"][:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])


class Tokens(Dataset):
    def __init__(self, seed: int, size: int = 24) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCABULARY, (size, TOKENS), generator=generator)
        lengths = torch.randint(3, TOKENS + 1, (size, 1), generator=generator)
        self.mask = (torch.arange(TOKENS) < lengths).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "attention_mask": self.mask[index]}


def token_loader(seed: int, size: int = 24, batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    return DataLoader(Tokens(seed, size), batch_size=batch_size, shuffle=shuffle)


def quiet_trainer(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer on ``ACCELERATOR`` that prints, logs and saves nothing unless asked to."""
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if ACCELERATOR != "cpu":
        silent |= {"devices": 1, "deterministic": "warn"}
    return L.Trainer(
        accelerator=ACCELERATOR,
        callbacks=callbacks,
        default_root_dir=folder,
        **{**silent, "enable_model_summary": False, **options},
    )


def foreign_module(
    optimizer: Callable[..., torch.optim.Optimizer], lora: bool, seed: int = 0, blocks: int = 3
) -> ForeignModule:
    from hpa_lightning.modules.lora import LoraSettings, add_lora

    torch.manual_seed(seed)
    model: nn.Module = LanguageModel(blocks)
    if lora:
        add_lora(model, LoraSettings(rank=3, alpha=6.0))
    return ForeignModule(model, optimizer)
