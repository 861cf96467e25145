"""Real multimodal architectures at a tiny size with random weights, and processors that are built offline."""

from __future__ import annotations

import json
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from hpa_lightning.data import Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.modules.timm_mllm import TimmMLLM, build_timm_mllm
from hpa_lightning.modules.timm_processor import TimmProcessor

SIDE = 28  # pixels

# The template of llava-hf/llava-1.5: it writes no end-of-turn token, and its generation prompt ends without a space.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The template of SmolVLM: an assistant turn ends with <end_of_utterance>.
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_CORPUS = [
    "USER: What is shown in the image? ASSISTANT: a red circle and a blue square",
    "user assistant system User Assistant Is there a picture of the cat? yes no it is green",
    "I cannot help with that request. Describe how to make the thing.",
]


@cache
def _trained_vocabulary() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(special: dict[str, str], extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with real merges; ``special`` names bos, eos and pad, ``extra`` further specials."""
    tokenizer = Tokenizer.from_str(_trained_vocabulary())
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys([*special.values(), *extra]))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, additional_special_tokens=list(extra), model_max_length=4096
    )


def _llama(tokenizer: PreTrainedTokenizerFast, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def tiny_llava(layers: int = 2, seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA: CLIP vision tower, MLP projector, Llama with grouped-query attention; 4 image tokens."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tiny_tokenizer(special, ("<image>",))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=VICUNA_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_llama(tokenizer, layers)),
        image_token_index=image_id,
        image_seq_length=4,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return _build(LlavaForConditionalGeneration, config, seed), processor


def tiny_qwen(layers: int = 2, seed: int = 0) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Qwen2.5-VL: native resolution, so that the number of image tokens depends on the image."""
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    extra = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = tiny_tokenizer(special, extra)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in extra}
    sizes = {"patch_size": 7, "temporal_patch_size": 2, "merge_size": 2}
    image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}, **sizes
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHATML_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            **_llama(tokenizer, layers),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 7,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 28,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return _build(Qwen2_5_VLForConditionalGeneration, config, seed), processor


def tiny_idefics3(layers: int = 2, seed: int = 0) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Idefics3 (SmolVLM's architecture): an image becomes several tiles between text tokens and line breaks."""
    special = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<pad>"}
    grid = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
    tokenizer = tiny_tokenizer(special, ("<image>", "<fake_token_around_image>", "<global-img>", *grid))
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=True
        ),
        tokenizer=tokenizer,
        image_seq_len=1,
        chat_template=SMOL_TEMPLATE,
    )
    config = Idefics3Config(
        text_config=LlamaConfig(**_llama(tokenizer, layers)),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 14,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return _build(Idefics3ForConditionalGeneration, config, seed), processor


def tiny_timm(
    layers: int = 2,
    seed: int = 0,
    tower: str = "vit_tiny_patch16_224",
    arguments: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> tuple[TimmMLLM, TimmProcessor]:
    """A timm vision tower (a ViT of one block by default), MLP projector, Llama; 4 image tokens."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tiny_tokenizer(special, ("<image>",))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = build_timm_mllm(
            tower,
            LlamaConfig(**_llama(tokenizer, layers)),
            tokenizer,
            pretrained_vision=False,
            vision_arguments={"img_size": 32, "depth": 1} if arguments is None else arguments,
            image_size=image_size,
            chat_template=VICUNA_TEMPLATE,
        )
    return _spread(model), processor


def _build(architecture: type, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _spread(architecture(config))


def _spread(model: Any) -> Any:
    # Larger than the usual initialisation, so that greedy answers differ from prompt to prompt.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name and "vision_tower" not in name:
                parameter.mul_(6.0)
    return model.eval()


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """A random RGB picture with large structures."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


_COLOURS = ("red", "green", "blue", "white", "black")


def training_records(count: int, seed: int = 0, name: str = "r", text_only_every: int = 0) -> list[Record]:
    """Questions about a random picture with a short answer."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        letters = "".join(rng.choice(list(string.ascii_lowercase), size=rng.integers(1, 9)))
        text_only = text_only_every > 0 and index % text_only_every == 0
        answer = f"{_COLOURS[rng.integers(len(_COLOURS))]} {letters[0]}"
        messages = user_turn(f"What is {letters} here?", images=0 if text_only else 1) + assistant_turn(answer)
        images = () if text_only else (picture(seed * 1000 + index),)
        records.append(Record(f"{name}{index}", messages, images))
    return records


def evaluation_records(count: int, seed: int = 0, name: str = "e") -> list[Record]:
    """The same questions without the answer, which stands in ``answers``."""
    return [
        Record(record.id, record.prompt_and_references()[0], record.images, record.prompt_and_references()[1])
        for record in training_records(count, seed, name)
    ]


def write_llava_json(path: Path, records: list[Record], image_folder: Path) -> None:
    """Write ``records`` as a LLaVA training file and their pictures as PNG under ``image_folder``."""
    image_folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for record in records:
        row: dict[str, Any] = {"id": record.id, "conversations": []}
        for number, message in enumerate(record.messages):
            text = "".join(part.get("text", "") for part in message["content"])
            if number == 0 and record.images:
                row["image"] = f"{record.id}.png"
                record.images[0].save(image_folder / row["image"])
                text = f"<image>\n{text}"
            row["conversations"].append({"from": "human" if message["role"] == "user" else "gpt", "value": text})
        rows.append(row)
    path.write_text(json.dumps(rows))
