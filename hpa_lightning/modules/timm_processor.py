"""Tokenizer and timm image transform as one processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor
from transformers import AutoTokenizer

from hpa_lightning.data.records import open_image
from hpa_lightning.files import write_text

PROCESSOR_FILE = "timm_processor.json"


class TimmProcessor:
    """Tokenizer and timm's evaluation transform behind the interface of a Hugging Face processor.

    Args:
        tokenizer: a fast tokenizer that knows ``image_token``.
        data_config: arguments of ``timm.data.create_transform`` (input size, mean, std, interpolation, ...).
        image_tokens: tokens of one image.
        image_token: the placeholder.
        chat_template: the tokenizer's when ``None``.
    """

    def __init__(
        self,
        tokenizer: Any,
        data_config: dict[str, Any],
        image_tokens: int,
        image_token: str = "<image>",
        chat_template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.data_config: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in data_config.items()
        }
        self.image_tokens = image_tokens
        self.image_token = image_token
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no token {image_token!r}; add it as a special token first.")
        self.chat_template = chat_template or tokenizer.chat_template
        self._transform = create_transform(**self.data_config, is_training=False)

    def __call__(self, text: list[str], images: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``pixel_values (images, 3, height, width)``.

        Raises:
            ValueError: the placeholders in a text and its images differ in number.
        """
        nested = [list(row) for row in images] if images else [[] for _ in text]
        expanded = []
        for index, (line, row) in enumerate(zip(text, nested, strict=True)):
            if line.count(self.image_token) != len(row):
                raise ValueError(f"text {index} has {line.count(self.image_token)} image tokens for {len(row)} images.")
            expanded.append(line.replace(self.image_token, self.image_token * self.image_tokens))
        output = dict(self.tokenizer(expanded, **kwargs))
        flat = [open_image(image, "image", max_pixels=None) for row in nested for image in row]
        if flat:
            output["pixel_values"] = torch.stack([self._transform(image) for image in flat])
        return {key: output[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in output}

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> str:
        """Render a conversation; see ``PreTrainedTokenizerBase.apply_chat_template``."""
        return self.tokenizer.apply_chat_template(
            conversation, chat_template=chat_template or self.chat_template, **kwargs
        )

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode token ids with the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer and the image settings into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        settings = {
            "data_config": self.data_config,
            "image_tokens": self.image_tokens,
            "image_token": self.image_token,
            "chat_template": self.chat_template,
        }
        write_text(Path(folder) / PROCESSOR_FILE, json.dumps(settings, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TimmProcessor:
        """Load what :meth:`save_pretrained` wrote."""
        settings = json.loads((Path(folder) / PROCESSOR_FILE).read_text())
        return cls(AutoTokenizer.from_pretrained(folder), **settings)
