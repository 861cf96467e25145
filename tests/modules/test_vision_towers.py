"""Hugging Face vision towers of real architectures, built from their configurations, under several language models."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from support.tiny_mllms import picture, training_records
from support.towers import LANGUAGE, SMALL, TOWERS, VIT, tokenizer
from transformers import AutoModelForImageTextToText, CLIPConfig, CLIPImageProcessor, CLIPModel

from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import MLLMModule, ModelParts, TimmMLLM, TimmProcessor, build_timm_mllm
from hpa_lightning.modules.timm_mllm import spatial_features
from hpa_lightning.modules.vision_towers import tower_features


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_a_hugging_face_tower_becomes_tokens(tower: str, language: str, tmp_path: Path) -> None:
    config, prefix, tokens = TOWERS[tower]
    words = tokenizer()
    model, processor = build_timm_mllm(config, {"model_type": language, "vocab_size": len(words), **LANGUAGE}, words)
    model.eval()
    assert processor.image_tokens == tokens
    batch = MLLMCollator(processor).train(training_records(2, text_only_every=2))
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == tokens
    with torch.no_grad():
        pixels = batch["pixel_values"]
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = states[-2] if states[-2].ndim == 3 else states[-2].flatten(2).transpose(1, 2)
        torch.testing.assert_close(tower_features(model.vision_tower, pixels), expected[:, prefix:])
        torch.testing.assert_close(tower_features(model.vision_tower, pixels, -2, "full"), expected)
        before = model(**batch)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    module = MLLMModule(model=str(tmp_path))  # one folder, and nothing else
    assert isinstance(module.model, TimmMLLM) and isinstance(module.processor, TimmProcessor)
    again = MLLMCollator(module.processor).train(training_records(2, text_only_every=2))
    with torch.no_grad():
        after = module.model.eval()(**again)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.loss, before.loss)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.feature_layer == -2


def test_the_text_template_of_a_language_model_gets_the_image_before_the_text() -> None:
    words = tokenizer()
    config = {"model_type": "llama", "vocab_size": len(words), **LANGUAGE}
    _, processor = build_timm_mllm(TOWERS["clip"][0], config, words)
    (record,) = training_records(1)
    text, spans = MLLMCollator(processor).template.training_text(record.messages, "record")
    question = record.messages[0]["content"][-1]["text"]
    assert text.startswith(f"<|im_start|>user\n<image>\n{question}<|im_end|>")
    answer = record.messages[1]["content"][0]["text"]
    assert [text[start:end] for start, end in spans] == [f"{answer}<|im_end|>"]


def test_the_tower_of_a_model_of_texts_and_images_is_taken_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config={**SMALL, "vocab_size": 99}, vision_config=VIT, projection_dim=16))
    clip.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    words = tokenizer()
    parts = ModelParts(str(tmp_path), {"model_type": "llama", "vocab_size": len(words), **LANGUAGE}, words)
    model, processor = parts.build()
    for name, weight in model.vision_tower.state_dict().items():
        assert torch.equal(weight, clip.vision_model.state_dict()[name.removeprefix("vision_model.")]), name
    pixels = processor(["<image>"], [[picture(0)]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(tower_features(model.vision_tower.eval(), pixels), expected)


def test_what_cannot_be_is_said() -> None:
    words = tokenizer()
    language = {"model_type": "llama", "vocab_size": len(words), **LANGUAGE}
    clip = TOWERS["clip"][0]
    with pytest.raises(ValueError, match=r"image_size are timm's"):
        build_timm_mllm(clip, language, words, image_size=64)
    with pytest.raises(ValueError, match="image_processor is for Hugging Face towers"):
        build_timm_mllm("vit_tiny_patch16_224", language, words, image_processor="x")
    with pytest.raises(ValueError, match="feature_layer is -9, but CLIPVisionModel has the hidden states of 3 blocks"):
        build_timm_mllm(clip, language, words, feature_layer=-9)
    with pytest.raises(ValueError, match="feature_select is 'cls'"):
        build_timm_mllm(clip, language, words, feature_select="cls")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a vision model"):
        build_timm_mllm({"model_type": "t5"}, language, words)


def test_spatial_features_keep_their_places() -> None:
    """Changing one quadrant of the picture changes the feature of that quadrant most, in row-major order."""
    tower = timm.create_model("test_convnext", num_classes=0).eval()
    blank = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        reference = spatial_features(tower, blank)
        for row in range(2):
            for column in range(2):
                changed = blank.clone()
                changed[..., 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 1.0
                difference = (spatial_features(tower, changed) - reference).norm(dim=-1)[0]
                assert int(difference.argmax()) == 2 * row + column
