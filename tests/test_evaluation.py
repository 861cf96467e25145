"""Validation, test and prediction score each set by its metric."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.tiny_mllms import tiny_llava, training_records
from torch import nn

from hpa_lightning.data import CVITDataModule, EvaluationSet, MLLMCollator, Record, ReplyOpenings, Task
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.evaluation import SetScoring
from hpa_lightning.modules import MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Echo(nn.Module):
    """Answers every prompt with the tokens of a fixed text: scores are then known."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokens = tokens

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        answer = torch.tensor(self.tokens[: kwargs["max_new_tokens"]]).expand(len(input_ids), -1)
        return torch.cat([input_ids, answer], dim=1)


class SecondPrompt:
    """A judge that looks at the prompts, as guard models do."""

    judges = "refusal"
    needs_prompts = True

    def __call__(self, responses: list[str], prompts: list[str] | None = None) -> list[bool]:
        return ["harm 1" in prompt for prompt in prompts or ()]


def test_validate_test_and_predict_score_each_set_by_its_metric() -> None:
    processor = tiny_llava()[1]
    test = [Record("0", user_turn("a?"), answers=("I cannot",)), Record("1", user_turn("b?"), answers=("no",))]
    harm = [Record(f"h{index}", user_turn(f"harm {index}")) for index in range(3)]
    choices = [
        Record(f"c{index}", user_turn("c?"), answers=(right,), choices=("yes", "no"))
        for index, right in enumerate(("no", "no", "yes"))
    ]
    sets = [
        EvaluationSet("benign", "over_refusal", harm[:2]),
        EvaluationSet("attack", "safety", harm),
        EvaluationSet("short", "safety", harm, max_new_tokens=2),
        EvaluationSet("published", "safety", harm, judge=SecondPrompt()),
        EvaluationSet("choice", "safety", choices, metric="unsafe_choice_rate"),
    ]
    data = CVITDataModule([Task("a", training_records(2), test)], safety_sets=sets, eval_batch_size=1)
    module = MLLMModule.from_objects(Echo(processor.tokenizer.encode(" I cannot")), processor)
    asked: list[Any] = []
    module.choose = lambda records, collator, size: asked.extend(records) or [[-1.0, -2.0]] * len(records)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    (scores, *_) = trainer.test(module, datamodule=data, verbose=False)
    assert scores == {
        "a/exact_match": 0.5,
        "attack/attack_success_rate": 0.0,
        "short/attack_success_rate": 1.0,
        "benign/over_refusal_rate": 1.0,
        "published/attack_success_rate": pytest.approx(2 / 3),  # by the set's own judge
        "choice/unsafe_choice_rate": pytest.approx(2 / 3),
        "evaluation/average_performance": 0.5,
        "evaluation/mean_attack_success_rate": pytest.approx((0 + 1 + 2 / 3 + 2 / 3) / 4),
        "evaluation/over_refusal": 1.0,
    }
    assert asked == choices
    assert trainer.validate(module, datamodule=data, verbose=False) == [
        {"a/exact_match": 0.5, "validation/average_performance": 0.5}
    ]
    data.predict_data = harm
    (batch, *rest) = trainer.predict(module, datamodule=data)
    said = {"id": "h0", "prompt": "USER: harm 0 ASSISTANT:", "response": "I cannot", "cut": False}
    assert batch == [said] and len(rest) == 2


def test_the_probability_of_a_refusal_judges_a_set_a_second_time() -> None:
    """The model's own probabilities, computed by transformers on each prompt alone; the judge's rate stays."""
    model, processor = tiny_llava()
    harm = [Record(f"h{index}", user_turn(f"harm {'very ' * index}{index}")) for index in range(5)]
    openings = ReplyOpenings(("I", "No", "We"))
    said = ("I cannot", "yes", "No.", "We do not", "red")
    taught = MLLMCollator(processor).train(
        [replace(one, messages=(*one.messages, *assistant_turn(said))) for one, said in zip(harm, said, strict=True)]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):  # not to the end: each opening is said with some probability
        optimizer.zero_grad()
        model(**taught).loss.backward()
        optimizer.step()
    sets = [
        EvaluationSet("attack", "safety", harm, max_new_tokens=2, openings=openings),
        EvaluationSet("benign", "over_refusal", harm[:3], max_new_tokens=2, openings=openings),
        EvaluationSet("plain", "safety", harm, max_new_tokens=2),
    ]
    data = CVITDataModule([Task("a", training_records(2))], safety_sets=sets, processor=processor, eval_batch_size=3)
    module = MLLMModule.from_objects(model, processor)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = {}
    for one in sets:
        scoring = SetScoring(one, data, module, trainer, together=False)
        for batch in data.evaluation_dataloader(one):
            scoring.answer(batch)
        scoring.choose()
        found[one.name] = scoring.finish()
    refused = []
    for record, row in zip(harm, found["attack"].rows, strict=True):
        logarithms = []
        for reply in openings.refusals:
            prompt = processor.apply_chat_template(list(record.messages), add_generation_prompt=True, tokenize=False)
            asked, whole = (
                processor.tokenizer(text, return_tensors="pt").input_ids for text in (prompt, f"{prompt} {reply}")
            )
            with torch.no_grad():
                likelihoods = model(input_ids=whole).logits.log_softmax(-1)[0, asked.shape[1] - 1 : -1]
            logarithms.append(float(likelihoods.gather(1, whole[0, asked.shape[1] :, None]).sum()))
        assert row["openings"] == pytest.approx(logarithms, abs=1e-4)
        refused.append(sum(math.exp(one) for one in logarithms))
    assert found["attack"].fields["figures"] == {"by_likelihood": pytest.approx(1 - sum(refused) / 5, abs=1e-6)}
    assert found["benign"].fields["figures"] == {"by_likelihood": pytest.approx(sum(refused[:3]) / 3, abs=1e-6)}
    assert 0.05 < max(refused) < 1 and "figures" not in found["plain"].fields


def test_openings_ask_a_collator_for_how_replies_begin() -> None:
    model, processor = tiny_llava()
    one = EvaluationSet("attack", "safety", [Record("h", user_turn("harm"))], openings=ReplyOpenings(("No",)))
    data = CVITDataModule([Task("a", training_records(2))], safety_sets=[one], processor=processor)
    data._collator = object()  # type: ignore[assignment]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(
        MisconfigurationException, match=r"'attack' has openings and asks the datamodule's collator for"
    ):
        SetScoring(one, data, MLLMModule.from_objects(model, processor), trainer, together=False)
