"""Earlier tasks in a file: what is written is read, and a file of another model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.calibration.earlier_tasks import EarlierTasks, model_type_of
from hpa_lightning.functional import InputSketch

WIDTHS = {"0.self_attn.q_proj": 12, "0.self_attn.k_proj": 12, "1.mlp.down_proj": 20}


def sketch(columns: int, seed: int) -> InputSketch:
    found = InputSketch(columns, 6)
    found.update(torch.randn(40, columns, generator=torch.Generator().manual_seed(seed)))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    first = {"0.self_attn.q_proj": "0.self_attn.q_proj", "0.self_attn.k_proj": "0.self_attn.q_proj"}
    sketches = {"0.self_attn.q_proj": sketch(12, 0), "1.mlp.down_proj": sketch(20, 1)}
    earlier = EarlierTasks(sketches, {**first, "1.mlp.down_proj": "1.mlp.down_proj"}, 2, ("charts", "text"), "llama")
    earlier.write(tmp_path / "earlier.safetensors")
    return tmp_path / "earlier.safetensors"


def test_what_is_written_is_read(file: Path) -> None:
    found = EarlierTasks.read(file, WIDTHS, 2, "llama")
    assert found.tasks == ("charts", "text") and found.blocks == 2 and found.model_type == "llama"
    assert found.sketches["0.self_attn.q_proj"] is found.sketches["0.self_attn.k_proj"]
    for name, columns, seed in (("0.self_attn.k_proj", 12, 0), ("1.mlp.down_proj", 20, 1)):
        made, read = sketch(columns, seed), found.sketches[name]
        torch.testing.assert_close(read.rows, made.rows, rtol=2**-8, atol=1e-6)
        assert torch.equal(read.diagonal, made.diagonal) and read.error >= made.error and read.count == 40
        gram = torch.randn(40, columns, generator=torch.Generator().manual_seed(seed)).double()
        lacking = gram.T @ gram - read.rows.double().T @ read.rows.double()
        assert float(torch.linalg.eigvalsh(lacking)[-1]) <= read.error * (1 + 1e-6)
    assert set(EarlierTasks.read(file, {"0.self_attn.k_proj": 12}, 2).sketches) == {"0.self_attn.k_proj"}


@pytest.mark.parametrize(
    ("widths", "blocks", "model_type", "message"),
    [
        (WIDTHS, 3, "llama", "another model .decoder blocks: 2 there, 3 here"),
        (WIDTHS, 2, "qwen2", "another model .model_type: 'llama' there, 'qwen2' here"),
        (WIDTHS | {"1.mlp.up_proj": 12}, 2, "llama", r"does not know 1 of 4 layers \(1.mlp.up_proj\)"),
        (WIDTHS | {"1.mlp.down_proj": 24}, 2, "", "1.mlp.down_proj has 20 input columns there and 24 here"),
    ],
)
def test_a_file_of_another_model_is_refused(
    widths: dict[str, int], blocks: int, model_type: str, message: str, file: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        EarlierTasks.read(file, widths, blocks, model_type)


def test_what_is_no_such_file_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file of earlier tasks"):
        EarlierTasks.read(tmp_path / "none", WIDTHS, 2)
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no header .*; expected a file that save_memory"):
        EarlierTasks.read(tmp_path / "model.safetensors", WIDTHS, 2)
    whole = file.read_bytes()
    for cut in (4, 100, len(whole) - 10):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be read"):
            EarlierTasks.read(tmp_path / "cut", WIDTHS, 2)


def test_the_type_of_a_wrapped_model() -> None:
    settings: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 4}
    model = LlamaForCausalLM(LlamaConfig(intermediate_size=8, **settings))
    assert model_type_of(nn.ModuleDict({"inner": model})) == "llama"
    assert model_type_of(nn.Linear(2, 2)) == ""


def test_layers_that_a_new_file_will_lack_are_told(file: Path) -> None:
    found = EarlierTasks.read(file, {"0.self_attn.k_proj": 12, "1.mlp.down_proj": 20}, 2)
    assert "remembers 1 layers that are not tuned now (0.self_attn.q_proj); b will not" in found.lost("a", "b")
    assert EarlierTasks.read(file, WIDTHS, 2).lost("a", "b") == ""
