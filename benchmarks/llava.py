"""A LLaVA-1.5 of any size with random weights on disk, its processor, and calibration data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH, SHARD = 336, 14, 5 << 30


def configuration(blocks: int, hidden: int = 4096, inner: int = 11008, tower_blocks: int = 24) -> LlavaConfig:
    """LLaVA-1.5-7B is 32 blocks of the default width; the vision tower is CLIP ViT-L/14 at 336 pixels."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=tower_blocks,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 128,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=257, dtype="bfloat16")


def processor() -> LlavaProcessor:
    """Bytes as tokens, and the image processor of LLaVA-1.5."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("</s>", "<image>", "<pad>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
            "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
            "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
        ),
    )


def write_checkpoint(folder: Path, config: LlavaConfig, device: str = "cpu") -> int:
    """Write random bf16 weights, drawn on a device, in shards, one at a time; return the bytes of the weights."""
    folder.mkdir(parents=True)
    with init_empty_weights(include_buffers=False):
        model = LlavaForConditionalGeneration(config)
    generator = torch.Generator(device).manual_seed(0)
    total, index = 0, {}
    for number, shard in enumerate(_shards(model.state_dict())):
        tensors = {
            name: torch.empty(empty.shape, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02, generator=generator)
            for name, empty in shard.items()
        }
        for name, tensor in tensors.items():
            if "norm" in name and name.endswith("weight"):
                tensor.fill_(1.0)
            total += tensor.nbytes
            index[name] = f"model-{number:05d}.safetensors"
        on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
        save_file(on_host, folder / f"model-{number:05d}.safetensors", {"format": "pt"})
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    processor().save_pretrained(folder)
    return total


def write_adapter(folder: Path, config: LlavaConfig, rank: int, device: str = "cpu") -> None:
    """Write a random LoRA adapter on all linear layers of the decoder blocks, as peft saves it."""
    folder.mkdir(parents=True)
    with init_empty_weights():
        model = LlavaForConditionalGeneration(config)
    generator = torch.Generator(device).manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if "language_model.layers" in name and isinstance(module, torch.nn.Linear):
            for factor, shape, std in (
                ("A", (rank, module.in_features), 0.02),
                ("B", (module.out_features, rank), 0.005),
            ):
                drawn = torch.empty(shape, device=device).normal_(0.0, std, generator=generator)
                tensors[f"base_model.model.{name}.lora_{factor}.weight"] = drawn.cpu()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def write_data(folder: Path, samples: int, name: str, answer: str) -> Path:
    """Write LLaVA-format records with photographs' size of noise, 640 by 480 pixels as JPEG."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng, records = np.random.default_rng(len(name)), []
    for number in range(samples):
        small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = f"images/{name}_{number:05d}.jpg"
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(folder / path, quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat is to be seen here?"}, {"from": "gpt", "value": answer}]
        records.append({"id": f"{name}_{number}", "image": path, "conversations": turns})
    (folder / f"{name}.json").write_text(json.dumps(records))
    return folder / f"{name}.json"


def _shards(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if shard and 2 * sum(other.numel() for other in (*shard.values(), tensor)) > SHARD:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
