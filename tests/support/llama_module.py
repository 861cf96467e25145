"""A module of somebody's around a causal language model of transformers'."""

from __future__ import annotations

import lightning as L
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.modules.lora import LoraSettings, add_lora


class LlamaModule(L.LightningModule):
    """A causal language model of transformers' as somebody tunes it."""

    def __init__(self, lora: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=23,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.2,
            )
        )
        if lora:
            add_lora(self.model, LoraSettings(rank=4, alpha=8.0))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch, labels=batch["input_ids"]).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
