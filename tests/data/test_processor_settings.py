"""What a processor makes of texts and pictures is told in words."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_mllms import tiny_llava

from hpa_lightning.data.nano import load_nano_processor
from hpa_lightning.data.processor_settings import processor_settings


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda processor: setattr(processor, "patch_size", 7), "image"),
        (lambda processor: setattr(processor.image_processor, "image_mean", [0.0, 0.0, 0.0]), "image"),
        (lambda processor: processor.tokenizer.add_special_tokens({"sep_token": "<sep>"}), "tokens"),
    ],
)
def test_every_part_counts(change: Any, name: str) -> None:
    before, processor = processor_settings(tiny_llava()[1]), tiny_llava()[1]
    assert processor_settings(processor) == before
    change(processor)
    now = processor_settings(processor)
    assert [key for key in before if before[key] != now[key]] == [name]


def test_a_tokenizer_alone_is_its_tokens_and_its_use_changes_nothing() -> None:
    processor = load_nano_processor()
    before = processor_settings(processor)
    processor.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert processor_settings(processor) == before
    assert processor_settings(processor.tokenizer) == {"tokens": before["tokens"]}
