"""Attach HPA to a Trainer and a LightningModule of your own: one fit is one task.

    python examples/own_trainer.py                          # a small random language model, runs anywhere
    python examples/own_trainer.py --model path/or/hub-name  # any Hugging Face causal language model

The module below knows nothing of hpa_lightning. Safety calibration data are yours as well: a loader of harmful inputs
together with the refusals of the model as it was before tuning. Here both are random tokens, since the example is about
the wiring.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hpa_lightning.callbacks import FocusPartition, HarmoniousFusion, MaskedFreezing, OrthogonalProjection


class MyModule(L.LightningModule):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-3)


def tokens(vocabulary: int, size: int, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, vocabulary, (size, 24), generator=generator)
    return DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows], 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="local folder or hub name; a small random Llama without it")
    parser.add_argument("--mode", choices=["in-training", "post-training"], default="post-training")
    options = parser.parse_args()
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model)
    else:
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=256,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
            )
        )
    vocabulary = model.config.vocab_size
    safety_data = tokens(vocabulary, 8, seed=1)  # yours: harmful inputs with the refusals of the aligned model
    if options.mode == "post-training":
        callbacks: list[L.Callback] = [HarmoniousFusion(safety_data=safety_data)]
    else:
        callbacks = [FocusPartition(safety_data=safety_data), MaskedFreezing(), OrthogonalProjection()]
    trainer = L.Trainer(max_epochs=1, callbacks=callbacks, logger=False, default_root_dir="runs/own_trainer")
    trainer.fit(MyModule(model), tokens(vocabulary, 128, seed=2))


if __name__ == "__main__":
    main()
