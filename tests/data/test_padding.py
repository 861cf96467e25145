from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny_mllms import evaluation_records, tiny_idefics3, tiny_llava, tiny_qwen, training_records

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.padding import pad_on
from hpa_lightning.data.record import assistant_turn, message_text, user_turn

RECORDS = [Record("a", user_turn("a")), Record("b", user_turn("b"))]


def records_of_unequal_length() -> list[Record]:
    long = Record("long", (*user_turn("What is the colour of it?"), *assistant_turn("it is a red circle and a cat")))
    return [*training_records(2), long]


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen, tiny_idefics3])
def test_a_processor_that_pads_on_a_side_of_its_own(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As InternVL's does through its text_kwargs, and Fuyu's whatever it is told."""
    processor = build()[1]
    expected_train = MLLMCollator(processor).train(records_of_unequal_length())
    expected_prompts = MLLMCollator(processor).generate(evaluation_records(3))
    original = type(processor).__call__
    for side in ("left", "right"):
        monkeypatch.setattr(
            type(processor),
            "__call__",
            lambda self, side=side, **settings: original(self, **settings | {"padding_side": side}),
        )
        batch = MLLMCollator(processor).train(records_of_unequal_length())
        prompts = MLLMCollator(processor).generate(evaluation_records(3))
        for key, value in expected_train.items():
            assert torch.equal(batch[key], value), (side, key)
        for key, value in expected_prompts["inputs"].items():
            assert torch.equal(prompts["inputs"][key], value), (side, key)


def test_text_kwargs_of_the_processor_do_not_move_the_labels() -> None:
    processor = tiny_qwen()[1]
    processor.text_kwargs = {"padding_side": "left"}
    records = records_of_unequal_length()
    batch = MLLMCollator(processor, max_length=60).train(records)
    for row, record in enumerate(records):
        labels = batch["labels"][row]
        assert processor.tokenizer.decode(labels[labels != -100]) == message_text(record.messages[-1]) + "<|im_end|>"
        assert bool(batch["attention_mask"][row, 0])


def test_every_tensor_with_one_entry_per_token_turns_with_its_row() -> None:
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "cross_attention_mask": torch.arange(16).reshape(2, 4, 2),
        "pixel_values": torch.arange(24.0).reshape(2, 4, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    }
    turned = pad_on("right", batch, RECORDS)
    assert turned["input_ids"].tolist() == [[5, 6, 0, 0], [1, 2, 3, 4]]
    assert turned["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert turned["cross_attention_mask"][0].tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]
    assert torch.equal(turned["pixel_values"], batch["pixel_values"])
    back = pad_on("left", turned, RECORDS)
    assert all(torch.equal(back[key], value) for key, value in batch.items())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1, 0], [1, 1, 1, 1]], "record 'a': the attention mask has gaps"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], "record 'b': the attention mask has gaps or no token"),
        ([[1, 1, 1, 1]], r"record 'a', record 'b': .*for 2 records"),
    ],
)
def test_a_mask_that_does_not_tell_the_padding_is_refused(mask: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_on(
            "right", {"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": torch.tensor(mask)}, RECORDS
        )
