"""Multiple choice by likelihood, on a real LLaVA architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_mllms import evaluation_records, tiny_llava

from hpa_lightning.data import MLLMCollator
from hpa_lightning.data.record import Record, assistant_turn
from hpa_lightning.modules import MLLMModule

CHOICES = ("red", "a blue square and a green cat", "no")


def questions(count: int) -> list[Record]:
    return [replace(record, choices=CHOICES, answers=(CHOICES[0],)) for record in evaluation_records(count, 3)]


def test_equals_the_loss_of_each_choice_alone() -> None:
    module = MLLMModule.from_objects(*tiny_llava())
    collator = MLLMCollator(module.processor)
    records = questions(2)
    found = module.choose(records, collator, batch_size=4)  # a batch holds choices of two records, padded
    assert [len(row) for row in found] == [3, 3]
    module.model.eval()
    for record, row in zip(records, found, strict=True):
        for choice, value in zip(CHOICES, row, strict=True):
            alone = Record("x", (*record.messages, *assistant_turn(choice)), record.images)
            with torch.no_grad():
                loss = module.model(**collator.train([alone])).loss  # the mean over the answer's tokens
            assert value == pytest.approx(-float(loss), abs=1e-4)


def test_the_model_learns_to_choose() -> None:
    torch.manual_seed(0)
    module = MLLMModule.from_objects(*tiny_llava(), freeze_vision=False)
    collator = MLLMCollator(module.processor)
    records = questions(2)
    wanted = [CHOICES[2], CHOICES[1]]
    answered = [
        Record("x", (*record.messages, *assistant_turn(answer)), record.images)
        for record, answer in zip(records, wanted, strict=True)
    ]
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    batch = collator.train(answered)
    for _ in range(40):
        loss = module.model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = module.choose(records, collator)
    assert [CHOICES[max(range(3), key=row.__getitem__)] for row in scores] == wanted
    assert module.training


def test_a_record_without_choices_is_named() -> None:
    module = MLLMModule.from_objects(*tiny_llava())
    with pytest.raises(ValueError, match="no choices"):
        module.choose(evaluation_records(1, 3), MLLMCollator(module.processor))
