"""Tokenizer and image transform as one processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from hpa_lightning.data.record import open_image
from hpa_lightning.files import write_text

PROCESSOR_FILE = "timm_processor.json"


class TimmProcessor:
    """Tokenizer and an image transform behind the interface of a Hugging Face processor.

    Args:
        tokenizer: a fast tokenizer that knows ``image_token``.
        data_config: arguments of ``timm.data.create_transform`` (input size, mean, std, interpolation, ...), whose
            evaluation transform is used; ``None`` with an image processor.
        image_tokens: tokens of one image.
        image_token: the placeholder.
        chat_template: the tokenizer's when ``None``.
        image_processor: an image processor of Hugging Face.

    Raises:
        ValueError: a tokenizer without the token, or not exactly one of ``data_config`` and ``image_processor``.
    """

    def __init__(
        self,
        tokenizer: Any,
        data_config: dict[str, Any] | None,
        image_tokens: int,
        image_token: str = "<image>",
        chat_template: str | None = None,
        image_processor: Any = None,
    ) -> None:
        if (data_config is None) == (image_processor is None):
            raise ValueError("expected either data_config (of timm's transform) or image_processor (Hugging Face's).")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.data_config: dict[str, Any] | None = None
        if data_config is not None:
            self.data_config = {key: tuple(v) if isinstance(v, list) else v for key, v in data_config.items()}
            self._transform = create_transform(**self.data_config, is_training=False)
        self.image_tokens = image_tokens
        self.image_token = image_token
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no token {image_token!r}; add it as a special token first.")
        self.chat_template = chat_template or tokenizer.chat_template
        self._parts_taken: dict[str, bool] = {}

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
            output["pixel_values"] = self._pixels(flat)
        return {key: output[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in output}

    def _pixels(self, images: list[Any]) -> Tensor:
        if self.image_processor is None:
            return torch.stack([self._transform(image) for image in images])
        found: Tensor = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return found

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> str:
        """Render a conversation; see ``PreTrainedTokenizerBase.apply_chat_template``.

        A language model's own template takes the content of a turn as text: it gets the turn's text, each image's token
        on a line before it.
        """
        template = chat_template or self.chat_template
        if template and not self._takes_parts(template):
            conversation = [{**turn, "content": self._text_of(turn["content"])} for turn in conversation]
        found: str = self.tokenizer.apply_chat_template(conversation, chat_template=template, **kwargs)
        return found

    def _text_of(self, content: Any) -> str:
        if isinstance(content, str):
            return content
        marks = sum(part["type"] == "image" for part in content)
        found: str = f"{self.image_token}\n" * marks + "".join(
            part["text"] for part in content if part["type"] == "text"
        )
        return found

    def _takes_parts(self, template: str) -> bool:
        """Whether a template writes a turn's image token and text where they are parts of its content."""
        if template not in self._parts_taken:
            probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a probe"}]}]
            try:
                text = self.tokenizer.apply_chat_template(probe, chat_template=template, tokenize=False)
            except Exception:  # of any kind: it is a user's Jinja
                text = ""
            # Where the list of parts is written as it is, it brings its keys along.
            self._parts_taken[template] = self.image_token in text and "a probe" in text and "'type'" not in text
        return self._parts_taken[template]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode token ids with the tokenizer."""
        found: list[str] = self.tokenizer.batch_decode(*args, **kwargs)
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer and the image settings into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
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
        images = AutoImageProcessor.from_pretrained(folder) if settings["data_config"] is None else None
        return cls(AutoTokenizer.from_pretrained(folder), **settings, image_processor=images)
