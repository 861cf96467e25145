"""Tokenizer and image transform as one processor: images in their places, and a folder that holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_mllms import picture, tiny_timm

from hpa_lightning.modules import TimmProcessor


@pytest.fixture(scope="module")
def processor() -> TimmProcessor:
    return tiny_timm()[1]


def test_each_image_becomes_its_tokens_and_a_batch_keeps_the_order(processor: TimmProcessor) -> None:
    texts = ["<image> red?", "no picture", "<image> and <image>"]
    images = [[picture(1)], [], [picture(2), picture(3)]]
    batch = processor(texts, images, padding=True, return_tensors="pt")
    marks = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert marks == [processor.image_tokens * len(row) for row in images]
    alone = [processor([processor.image_token], [[picture(seed)]], return_tensors="pt") for seed in (1, 2, 3)]
    torch.testing.assert_close(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
    assert "pixel_values" not in processor(["no picture"], return_tensors="pt")


def test_images_without_a_mark_and_marks_without_an_image_are_refused(processor: TimmProcessor) -> None:
    for text, images in (("none", [[picture(1)]]), ("<image>", [[]]), ("<image>", None)):
        with pytest.raises(ValueError, match=f"text 0 has {text.count('<image>')} image tokens for"):
            processor([text], images)


def test_a_template_that_takes_text_gets_the_image_before_it(processor: TimmProcessor) -> None:
    turn = [{"role": "user", "content": [{"type": "text", "text": "red?"}, {"type": "image"}]}]
    plain = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
    assert processor.apply_chat_template(turn, chat_template=plain, tokenize=False) == "[user] <image>\nred?"
    own = processor.apply_chat_template(turn, tokenize=False)
    assert own.count("<image>") == 1 and "red?" in own and "'type'" not in own


def test_a_folder_gives_the_same_tensors(processor: TimmProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = TimmProcessor.from_pretrained(tmp_path)
    both: list[dict[str, Any]] = [
        one(["<image> red?"], [[picture(5)]], return_tensors="pt") for one in (processor, loaded)
    ]
    for name, tensor in both[0].items():
        assert torch.equal(tensor, both[1][name])
    assert loaded.chat_template == processor.chat_template


def test_what_it_is_made_of_is_checked(processor: TimmProcessor) -> None:
    with pytest.raises(ValueError, match="either data_config"):
        TimmProcessor(processor.tokenizer, None, 4)
    with pytest.raises(ValueError, match="the tokenizer has no token '<picture>'; add it"):
        TimmProcessor(processor.tokenizer, processor.data_config, 4, image_token="<picture>")
