"""The shipped text model, aligned on text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

TEXT_WEIGHTS = Path(__file__).parent / "text_weights"
"""Folder of the model and its tokenizer, as `from_pretrained` reads it."""


def load_nano_text_model(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, Any]:
    """The shipped text model, in evaluation mode, and its tokenizer.

    Args:
        dtype: of the weights; they are stored in bfloat16 and were rounded to it before they were measured.
    """
    model = LlamaForCausalLM.from_pretrained(TEXT_WEIGHTS, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(TEXT_WEIGHTS)
