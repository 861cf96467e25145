"""The shipped model and its processor."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the pretrained and safety-aligned model, as `from_pretrained` reads it."""


def load_nano_processor() -> LlavaProcessor:
    """The processor of the shipped model: word-level tokenizer, image processor, chat template."""
    found: LlavaProcessor = AutoProcessor.from_pretrained(WEIGHTS)
    return found


def load_nano_model(dtype: torch.dtype = torch.float32) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The shipped model, in evaluation mode, and its processor.

    Args:
        dtype: of the weights; they are stored in bfloat16 and were rounded to it before they were measured.

    Raises:
        FileNotFoundError: if the weights are not installed.
    """
    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{WEIGHTS} has no model.safetensors; make it with `python -m hpa_lightning.data.nano.pretrain --out "
            "FOLDER`, or reinstall the package."
        )
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=dtype).eval()
    return model, load_nano_processor()
