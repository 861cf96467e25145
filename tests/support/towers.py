"""Configurations of real vision towers at a tiny size, and a tokenizer with the template of a language model."""

from __future__ import annotations

from typing import Any

from support.tiny_mllms import tiny_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {**SMALL, "image_size": 32, "patch_size": 16}
# Configuration, its tokens before the patches, tokens of an image.
TOWERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "clip": ({"model_type": "clip_vision_model", "projection_dim": 16, **VIT}, 1, 4),
    "siglip": ({"model_type": "siglip_vision_model", **VIT}, 0, 4),
    "dinov2": ({"model_type": "dinov2", **VIT, "mlp_ratio": 2}, 1, 4),
    "dinov2_with_registers": ({"model_type": "dinov2_with_registers", **VIT, "mlp_ratio": 2}, 5, 4),
    "vit": ({"model_type": "vit", **VIT}, 1, 4),
    "convnext": (
        {"model_type": "convnext", "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "image_size": 64},
        0,
        16,  # layer -2: the map before the last stage
    ),
}
LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# The template of Llama-2-Chat and Qwen2 alike: the content of a turn is a text.
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> Any:
    special = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    made = tiny_tokenizer(special, ("<|im_start|>",))
    made.chat_template = TEXT_TEMPLATE
    return made
