"""TimmMLLM: any tower, images and tokens that fit, a frozen tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_mllms import picture, tiny_timm, training_records
from support.towers import LANGUAGE

from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import (
    LoraSettings,
    MLLMModule,
    TimmMLLM,
    TimmProcessor,
    build_timm_mllm,
    find_decoder_blocks,
)

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}

TOWERS = [
    ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, None, 4),  # a class token before the patches
    ("test_convnext", {}, 64, 4),  # a map, channels first
    ("swin_tiny_patch4_window7_224", SWIN, None, 4),  # a map, channels last, with constant buffers
]


@pytest.mark.parametrize(("tower", "arguments", "side", "tokens"), TOWERS, ids=[tower[0] for tower in TOWERS])
def test_any_tower_becomes_tokens(
    tower: str, arguments: dict[str, Any], side: int, tokens: int, tmp_path: Path
) -> None:
    model, processor = tiny_timm(tower=tower, arguments=arguments, image_size=side)
    assert processor.image_tokens == tokens
    model.eval()
    batch = MLLMCollator(processor).train(training_records(2, text_only_every=2))
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == tokens
    with torch.no_grad():
        before = model(**batch)
        features = model.image_features(batch["pixel_values"])[0]
        # The same by hand: each row's image tokens replaced one by one.
        embeddings = model.get_input_embeddings()(batch["input_ids"]).clone()
        places = (batch["input_ids"][1] == processor.image_token_id).nonzero().flatten()
        for place, feature in zip(places, features, strict=True):
            embeddings[1, place] = feature
        by_hand = model.language_model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(before.logits, by_hand)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        after = TimmMLLM.from_pretrained(tmp_path).eval()(**batch)
    torch.testing.assert_close(after.logits, before.logits)
    pixels = [
        made(["<image>?"], [[picture(0)]], return_tensors="pt")["pixel_values"]
        for made in (processor, TimmProcessor.from_pretrained(tmp_path))
    ]
    assert torch.equal(*pixels)


def test_it_has_decoder_blocks_and_takes_lora() -> None:
    model, processor = tiny_timm()
    name, blocks = find_decoder_blocks(model)
    assert name == "language_model.model.layers" and len(blocks) == 2
    module = MLLMModule.from_objects(model, processor, lora=LoraSettings(rank=2, target_modules=["q_proj"]))
    tuned = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(tuned) == 4 and all("language_model.model.layers" in name and "q_proj" in name for name in tuned)


def test_a_frozen_tower_keeps_its_batch_statistics() -> None:
    model, processor = tiny_timm(tower="resnet10t", arguments={}, image_size=64)
    module = MLLMModule.from_objects(model, processor)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    before = {name: buffer.clone() for name, buffer in model.vision_tower.named_buffers()}
    module.train()
    module.training_step(MLLMCollator(processor).train(training_records(2)), 0)
    assert before and all(torch.equal(b, before[name]) for name, b in model.vision_tower.named_buffers())


def test_images_and_tokens_must_fit() -> None:
    model, processor = tiny_timm()
    ids = torch.tensor([[processor.image_token_id]])
    with pytest.raises(ValueError, match="image tokens but no pixel_values"):
        model(ids)
    with pytest.raises(ValueError, match="1 image tokens for 1 images of 4 features"):
        model(ids, pixel_values=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="text 0 has 2 image tokens for 1 images"):
        processor(["<image><image>"], [[picture(0)]])
    with pytest.raises(ValueError, match="pass tokenizer="):
        build_timm_mllm("vit_tiny_patch16_224", {"model_type": "llama"}, pretrained_vision=False)


def test_from_timm_adds_a_missing_image_token() -> None:
    reference, processor = tiny_timm()
    tokenizer = processor.tokenizer
    known = len(tokenizer)
    config = {**reference.config.text_config.to_dict(), "vocab_size": known}
    settings = {"pretrained_vision": False, "vision_arguments": {"img_size": 32, "depth": 1}}
    model, processor = build_timm_mllm(
        "vit_tiny_patch16_224", config, tokenizer, image_token="<picture>", chat_template="x", **settings
    )
    assert processor.image_token_id == known and model.get_input_embeddings().num_embeddings == known + 1
    module = MLLMModule.from_timm("vit_tiny_patch16_224", config, tokenizer, **settings, lora=LoraSettings(rank=1))
    assert isinstance(module.model, TimmMLLM) and module.lora is not None


@pytest.mark.parametrize("grid", [1, 2])
def test_a_grid_of_fewer_features(grid: int, tmp_path: Path) -> None:
    """A convolutional tower of 4 x 4 places at 128 pixels, averaged by hand."""
    _, plain = tiny_timm(tower="test_convnext", arguments={}, image_size=128)
    text = {"model_type": "llama", "vocab_size": len(plain.tokenizer), **LANGUAGE}
    model, processor = build_timm_mllm(
        "test_convnext", text, plain.tokenizer, False, image_size=128, image_grid=grid, remembered_pictures=8
    )
    assert processor.image_tokens == model.config.image_tokens == grid * grid
    pixels = torch.randn(2, 3, 128, 128)
    model.eval().requires_grad_(False)
    features = model.vision_tower.forward_features(pixels)  # type: ignore[operator]
    size = 4 // grid
    places = [
        features[:, :, row : row + size, column : column + size].mean(dim=(2, 3))
        for row in range(0, 4, size)
        for column in range(0, 4, size)
    ]
    wanted = model.projector(torch.stack(places, dim=1))
    torch.testing.assert_close(model.image_features(pixels), wanted)
    torch.testing.assert_close(model.image_features(pixels), wanted)
    assert len(model.feature_memory) == 2
    model.save_pretrained(tmp_path)
    again = TimmMLLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.image_features(pixels), wanted)


def test_a_grid_that_cannot_be() -> None:
    for grid, words in ((9, "4 features of an image"), (0, "at least 1"), (True, "at least 1")):
        with pytest.raises(ValueError, match=f"image_grid is .*{words}"):
            tiny_grid(grid)


def tiny_grid(grid: Any) -> None:
    _, plain = tiny_timm(tower="test_convnext", arguments={}, image_size=64)
    text = {"model_type": "llama", "vocab_size": len(plain.tokenizer), **LANGUAGE}
    build_timm_mllm("test_convnext", text, plain.tokenizer, False, image_size=64, image_grid=grid)


def test_the_head_sees_the_answers_alone() -> None:
    model, processor = tiny_timm()
    model.eval()
    batch = MLLMCollator(processor).train(training_records(3, text_only_every=2))
    first = int((batch["labels"] != -100).nonzero()[:, 1].min()) - 1
    whole = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    found = model(**batch, loss_alone=True)
    torch.testing.assert_close(found.logits, whole[:, first:])
    torch.testing.assert_close(found.loss, model(**batch).loss)
    shifted = whole[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(*shifted))
    assert found.logits.shape[1] < whole.shape[1]
