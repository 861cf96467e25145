from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_mllms import picture, tiny_llava, training_records

from hpa_lightning.data import MLLMCollator, Record, SafetyCalibration, build_safety_calibration
from hpa_lightning.data.record import assistant_turn, message_text, user_turn
from hpa_lightning.data.safety_sets import given_safety_calibration
from hpa_lightning.metrics import StringRefusalJudge

RECORDS = [Record(f"h{i}", user_turn(f"harm {i}", images=1), (picture(i),), source=f"harm.json[{i}]") for i in range(9)]


@pytest.fixture(scope="module")
def collator() -> MLLMCollator:
    return MLLMCollator(tiny_llava()[1])


def aligned(batch: dict[str, Any]) -> list[str]:
    """Refuses every input but those with an odd number."""
    return ["Sure, first" if int(name[1:]) % 2 else " I cannot help with that. " for name in batch["ids"]]


def test_only_refusals_are_kept_until_there_are_enough(collator: MLLMCollator) -> None:
    asked: list[str] = []

    def generate(batch: dict[str, Any]) -> list[str]:
        asked.extend(batch["ids"])
        return aligned(batch)

    result = build_safety_calibration(generate, collator, RECORDS, StringRefusalJudge(), size=3, batch_size=2)
    assert [record.id for record in result.records] == ["h0", "h2", "h4"]
    assert (result.asked, result.refused) == (6, 3) and len(asked) == 6
    assert all(message_text(record.messages[-1]) == "I cannot help with that." for record in result.records)
    assert collator.train(result.records)["labels"].shape[0] == 3
    of_three_classes = build_safety_calibration(aligned, collator, RECORDS, StringRefusalJudge().verdicts, size=5)
    assert of_three_classes.refused == 5 and of_three_classes.records[1].id == "h2"


@pytest.mark.parametrize("broken", ["", " \n", "!!!!!!!!", "\ufffd\ufffd", "```"])
def test_an_answer_without_a_letter_is_no_refusal(broken: str, collator: MLLMCollator) -> None:
    """Judges take it for one; a model whose activations overflow writes exclamation marks."""
    judge = StringRefusalJudge()
    assert judge([broken]) == [True]
    answers = lambda batch: [broken if name == "h0" else "I cannot help with that." for name in batch["ids"]]  # noqa: E731
    result = build_safety_calibration(answers, collator, RECORDS[:3], judge, size=2)
    assert [record.id for record in result.records] == ["h1", "h2"] and result.refused == 2
    given = [Record("g", user_turn("harm"), answers=(broken,))]
    with pytest.raises(ValueError, match="has no answer; expected its refusal"):
        given_safety_calibration(given, judge, 1)


def test_an_answer_that_came_along_is_not_used(collator: MLLMCollator) -> None:
    harmful = training_records(2, name="h")
    (record,) = build_safety_calibration(aligned, collator, harmful, StringRefusalJudge(), size=1).records
    assert [message["role"] for message in record.messages] == ["user", "assistant"]
    assert message_text(record.messages[-1]) == "I cannot help with that."


def test_shortage_is_told_with_counts(collator: MLLMCollator) -> None:
    judge = StringRefusalJudge()
    with pytest.raises(ValueError, match=r"refused 5 of 9 harmful inputs; the safety calibration set needs 6"):
        build_safety_calibration(aligned, collator, RECORDS, judge, size=6)
    with pytest.warns(UserWarning, match="refused 5 of 9"):
        result = build_safety_calibration(aligned, collator, RECORDS, judge, size=6, on_shortage="warn")
    assert len(result.records) == 5
    with pytest.raises(ValueError, match="refused 0 of 1"):
        build_safety_calibration(aligned, collator, RECORDS[1:2], judge, size=1, on_shortage="warn")
    with pytest.raises(ValueError, match="1 harmful inputs got 0 answers"):
        build_safety_calibration(lambda batch: [], collator, RECORDS[:1], judge, size=1)
    with pytest.raises(ValueError, match="size and batch_size are 0 and 8"):
        build_safety_calibration(aligned, collator, RECORDS, judge, size=0)


def test_a_judge_gives_a_verdict_for_every_answer(collator: MLLMCollator) -> None:
    given = [Record(f"g{number}", (*user_turn("harm"), *assistant_turn("I can't help."))) for number in range(3)]
    with pytest.raises(ValueError, match="returned 2 verdicts for 3 responses"):
        given_safety_calibration(given, lambda answers: [True, True], size=3)
    with pytest.raises(ValueError, match="returned 1 verdicts for"):
        build_safety_calibration(aligned, collator, RECORDS, lambda answers: [True], size=5)

    class Guard:
        needs_prompts = True

        def __call__(self, answers: list[str], prompts: list[str]) -> list[bool]:
            return [prompt == "harm" for prompt in prompts]

    assert given_safety_calibration(given, Guard(), size=3).refused == 3  # type: ignore[arg-type]


def test_state_survives_a_checkpoint(collator: MLLMCollator) -> None:
    paths = [*RECORDS[:1], Record("h2", user_turn("harm", images=1), ("folder/x.png",))]
    before = build_safety_calibration(aligned, _Prompts(), paths, StringRefusalJudge(), size=2)  # type: ignore[arg-type]
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = SafetyCalibration.from_state_dict(torch.load(file, weights_only=True))
    assert (after.asked, after.refused) == (before.asked, before.refused)
    assert [record.messages for record in after.records] == [record.messages for record in before.records]
    np.testing.assert_array_equal(after.records[0].images[0], np.asarray(picture(0)))
    assert after.records[1].images == ("folder/x.png",)
    for key, value in collator.train(before.records[:1]).items():
        assert torch.equal(collator.train(after.records[:1])[key], value)


class _Prompts:
    """Stands in for a collator where images are not to be opened."""

    def generate(self, records: list[Record]) -> dict[str, Any]:
        return {"ids": [record.id for record in records]}
