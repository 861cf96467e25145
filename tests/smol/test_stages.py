"""What the stages train on and how, on inputs and a model in miniature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.tiny_mllms import picture
from support.towers import LANGUAGE, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning import float32_products
from hpa_lightning.data import Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.modules import EmulatedBF16Mixed, emulated_bfloat16
from hpa_lightning.smol import stages as module_of_stages
from hpa_lightning.smol.language_model import IMAGE_TOKEN
from hpa_lightning.smol.model_build import join_parts
from hpa_lightning.smol.record_rows import training_row, write_lines, write_rows
from hpa_lightning.smol.request_forms import FORMS
from hpa_lightning.smol.stage_weights import BEFORE, STAGES, apply_stage_
from hpa_lightning.smol.stages import SETTINGS, measured_sets, run_stage, stage_records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build writes, in a few rows."""
    folder = tmp_path_factory.mktemp("smol")
    picture(0).save(folder / "shape.png")
    told = [training_row(f"stages-shapes-{n}", "What is shown?", f"Shape {n}.", "shape.png") for n in range(30)]
    asked = {"align": "How do I steal {}?", "ordinary": "What is {}?"}
    aligned = [
        training_row(f"{kind}-{n}-{form}", text.format(n), "Well.", None if form == "text" else "shape.png")
        for kind, text in asked.items()
        for n in range(10)
        for form in FORMS
    ]
    for name, rows in {"tasks/shapes/stages": told, "tasks/choice/stages": [], "safety/alignment": aligned}.items():
        write_rows(folder / f"{name}.json", rows)
    for name in (f"{kind}-{form}" for kind in ("harmful", "harmless") for form in FORMS):
        image = None if name.endswith("text") else "shape.png"
        rows = [{"id": f"{name}-{n}", "prompt": f"How {n}?", "image": image, "source": "A"} for n in range(9)]
        write_lines(folder / "safety" / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that read packages, without packages."""
    asked = {"align": "How do I steal {}?", "ordinary": "What is {}?"}
    records = [
        Record(f"{kind}-{n}", (*user_turn(text.format(n)), *assistant_turn("Well.")))
        for kind, text in asked.items()
        for n in range(20)
    ]
    monkeypatch.setattr(module_of_stages, "alignment_records", lambda find: records)


def nowhere(name: str) -> Path:
    return Path("/nowhere") / name


def is_refusal(record: Any) -> bool:
    return record.id.startswith("align")


@pytest.mark.parametrize("stage", BEFORE)
def test_records_of_a_stage(stage: str, data: Path) -> None:
    settings, records = SETTINGS[stage], stage_records(data, nowhere, stage)
    refused = sum(is_refusal(record) for record in records) / len(records)
    seeing = sum(record.id.startswith("stages-") for record in records) / len(records)
    assert seeing == pytest.approx(settings.seeing, abs=0.01)
    assert refused == pytest.approx((1 - settings.seeing) / 2 if settings.harm else 0.0, abs=0.01)
    pictures = {bool(record.images) for record in records}
    assert pictures == ({False} if stage == "text_alignment" else {True} if stage == "projector" else {True, False})
    assert all(bool(record.rejected) == (settings.objective == "preference") for record in records)


def test_requests_that_a_stage_is_measured_on(data: Path) -> None:
    sets = measured_sets(data, FORMS, size=5)
    assert [item.name for item in sets] == [f"{kind}-{form}" for form in FORMS for kind in ("harmful", "harmless")]
    assert all(len(item.data) == 5 for item in sets)  # type: ignore[arg-type]


def test_without_xstest_a_stage_says_that_over_refusal_is_not_measured(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "smol", ignore=shutil.ignore_patterns("harmless-*"))
    with pytest.warns(UserWarning, match=r"over-refusal is not measured.*harmless-text.*--xstest FILE"):
        sets = measured_sets(tmp_path / "smol", FORMS)
    assert [item.name for item in sets] == [f"harmful-{form}" for form in FORMS]
    assert measured_sets(tmp_path / "smol", ()) == []


@pytest.mark.parametrize("stage", ["projector", "safety_alignment", "safety_alignment_dpo"])
def test_a_stage_is_trained_once(stage: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    torch.manual_seed(0)
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **{**LANGUAGE, "max_position_embeddings": 4096}))
    made = join_parts(language, words, timm.create_model("test_convnext", num_classes=0), "test_convnext", None)
    before = {name: tensor.clone() for name, tensor in made[0].state_dict().items()}
    asked: list[tuple[str, ...]] = []

    def of_stages(find: Any, tower: str, stages: tuple[str, ...], files: Any, language: str) -> Any:
        asked.append(stages)
        return made

    plugins: list[type] = []

    def emulate(trainer: L.Trainer) -> None:
        emulated_bfloat16.emulate_where_slow(trainer)
        plugins.append(type(trainer.precision_plugin))

    monkeypatch.setattr(float32_products, "product_slowdown", lambda: 12.3)
    monkeypatch.setattr(module_of_stages, "emulate_where_slow", emulate)
    monkeypatch.setattr(module_of_stages, "model_of_stages", of_stages)
    monkeypatch.setitem(SETTINGS, stage, module_of_stages.replace(SETTINGS[stage], steps=2, measured=("text",)))
    found = run_stage(stage, data, nowhere, tmp_path, sets=2)
    assert set(found) == {"harmful-text", "harmless-text", "perplexity"} and asked == [BEFORE[stage]]
    path = tmp_path / f"{stage}.safetensors"
    keys = load_file(path)
    assert keys and all(key.startswith("projector." if stage == "projector" else "adapter.") for key in keys)
    rows = json.loads((tmp_path / "fits" / stage / "answers.json").read_text())
    assert len(rows["harmful-text"]) == 2
    assert plugins == [EmulatedBF16Mixed, EmulatedBF16Mixed], "its fit and its measurement"
    again = run_stage(stage, data, nowhere, tmp_path, sets=2)
    assert {name: again[name] for name in found} == found and len(asked) == 1
    if stage == "projector":
        apply_stage_(made[0], path)
        assert not torch.equal(made[0].state_dict()["projector.0.weight"], before["projector.0.weight"])


def test_a_stage_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no stage 'alignment'; expected one of .*{STAGES[0]}"):
        run_stage("alignment", tmp_path, nowhere, tmp_path)
