"""Sequence classifiers of real architectures at a tiny size, with their tokenizers, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.tiny_mllms import tiny_tokenizer
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

LABELS = {0: "toxic", 1: "threat", 2: "neutral"}


def write_classifier(folder: Path, kind: str, seed: int = 0, limit: int | None = None, **settings: Any) -> str:
    """Write a DistilBERT or RoBERTa classifier with random weights that tell texts apart.

    Args:
        folder: where to.
        kind: ``"distilbert"`` (32 positions) or ``"roberta"`` (34, of which it uses 32).
        seed: of the weights.
        limit: ``model_max_length`` of the tokenizer; none if ``None``.
        settings: of the configuration, such as ``problem_type``.
    """
    torch.manual_seed(seed)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = tiny_tokenizer(special)
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "id2label": LABELS, **settings}
    if kind == "distilbert":
        config: Any = DistilBertConfig(
            dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=32, initializer_range=0.5, **common
        )
        model: Any = DistilBertForSequenceClassification(config)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = RobertaConfig(
            max_position_embeddings=32 + tokenizer.pad_token_id + 1, initializer_range=0.5, **sizes, **common
        )
        model = RobertaForSequenceClassification(config)
    if limit is not None:
        tokenizer.model_max_length = limit
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
