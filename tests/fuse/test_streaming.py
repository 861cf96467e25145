from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_mllms import (
    CHATML_TEMPLATE,
    tiny_idefics3,
    tiny_llava,
    tiny_qwen,
    tiny_timm,
    tiny_tokenizer,
    training_records,
)
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks.batches import valid_positions
from hpa_lightning.data import MLLMCollator
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.streaming import StreamedModel
from hpa_lightning.modules.blocks import find_decoder_blocks


def tiny_text(layers: int = 2, tied: bool = True) -> tuple[Any, Any]:
    """A text-only model whose output head is its embedding."""
    tokenizer = tiny_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("<|im_start|>",))
    tokenizer.chat_template = CHATML_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": layers}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=0, **sizes)
    return LlamaForCausalLM(config).eval(), tokenizer


MAKERS = {
    "llava": tiny_llava,
    "qwen": tiny_qwen,
    "idefics3": tiny_idefics3,
    "timm": tiny_timm,
    "text": tiny_text,
}


def in_memory(stream: StreamedModel) -> int:
    return sum(
        parameter.numel() for block in stream.blocks for parameter in block.parameters() if not parameter.is_meta
    )


@pytest.fixture(params=[*MAKERS, "llava-bfloat16", "qwen-float16"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[dict], nn.Module]:
    """A folder, batches for it, and the model as ``from_pretrained`` loads it."""
    name, _, dtype = request.param.partition("-")
    model, processor = MAKERS[name]()
    if dtype:
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    records = training_records(4, 3, text_only_every=1 if name == "text" else 0)
    batches = [MLLMCollator(processor).train(records[start : start + 2]) for start in (0, 2)]
    for batch in batches:
        batch.pop("labels")
        batch.update({key: value.to(model.dtype) for key, value in batch.items() if value.is_floating_point()})
    auto = AutoModelForCausalLM if name == "text" else AutoModelForImageTextToText
    return tmp_path, batches, auto.from_pretrained(tmp_path, dtype="auto").eval()


def test_computes_what_the_loaded_model_computes(saved: tuple[Path, list[dict], nn.Module]) -> None:
    folder, batches, loaded = saved
    stream = StreamedModel(Checkpoint(folder), torch.device("cpu"))
    sizes: list[int] = []
    for block in stream.blocks:
        block.register_forward_hook(lambda *_: sizes.append(in_memory(stream)))
    logits: list[torch.Tensor] = []
    stream.model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    with torch.no_grad():
        for batch in batches:
            stream.forward(batch)
            assert torch.equal(logits.pop(), loaded(**batch).logits)
    one_block = sum(parameter.numel() for parameter in stream.blocks[0].parameters())
    assert sizes == [one_block] * 4
    stream.drop_block()
    assert in_memory(stream) == 0


def test_calibrates_as_the_loaded_model(saved: tuple[Path, list[dict], nn.Module]) -> None:
    folder, batches, loaded = saved
    stream = StreamedModel(Checkpoint(folder), torch.device("cpu"))
    reads: list[str] = []
    read: Callable[..., torch.Tensor] = stream.checkpoint.tensor
    stream.checkpoint.tensor = lambda name, device: reads.append(name) or read(name, device)  # type: ignore[method-assign,func-returns-value]

    def diagonals(model: nn.Module, forward: Callable[[dict], Any]) -> dict[str, torch.Tensor]:
        prefix, blocks = find_decoder_blocks(model)
        linears = {
            name: module
            for name, module in model.named_modules()
            if name.startswith(f"{prefix}.") and isinstance(module, nn.Linear)
        }
        return inverse_hessian_diagonals(forward, batches, blocks, linears, valid_positions=valid_positions)

    found = diagonals(stream.model, stream.forward)
    expected = diagonals(loaded, lambda batch: loaded(**batch, use_cache=False))
    assert list(found) == list(expected) and len(found) == 14
    assert all(torch.equal(found[name], expected[name]) for name in found)
    weights = [name for name in reads if name.endswith("q_proj.weight")]
    assert len(weights) == 2  # each block is read once, however many batches there are


def test_gives_the_memory_back(tmp_path: Path) -> None:
    tiny_llava()[0].save_pretrained(tmp_path)
    with StreamedModel(Checkpoint(tmp_path), torch.device("cpu")) as stream:
        assert any(not parameter.is_meta for parameter in stream.model.parameters())
    assert all(parameter.is_meta for parameter in stream.model.parameters())
    assert all("forward" not in block.__dict__ for block in stream.blocks)
