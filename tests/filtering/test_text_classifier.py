"""The text classifier of a filter against transformers' own pipeline, on real architectures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.text_classifiers import write_classifier
from support.tiny_mllms import tiny_tokenizer
from transformers import DistilBertConfig, DistilBertForMaskedLM, pipeline

from hpa_lightning.data import Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.filtering import Assessment, TextClassifier

TEXTS = [
    "What is shown?",
    "a red circle and a blue square",
    "I cannot help with that request.",
    "no",
    "yes it is green",
]


def conversation(*texts: str, image: bool = False) -> Record:
    turns = [
        (user_turn(text, image and n == 0) if n % 2 == 0 else assistant_turn(text)) for n, text in enumerate(texts)
    ]
    return Record("1", tuple(message for turn in turns for message in turn), images=("a.png",) if image else ())


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_scores_are_the_pipelines(kind: str, problem: str | None, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, kind, problem_type=problem)
    part = TextClassifier(folder, ["toxic"], device="cpu", batch_size=2)
    asked = pipeline("text-classification", model=folder, device="cpu")
    for scores, expected in zip(part.scores(TEXTS), asked(TEXTS, top_k=None), strict=True):
        assert scores == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)
    assert len({round(scores["toxic"], 4) for scores in part.scores(TEXTS)}) == len(TEXTS)


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_a_long_text_is_read_to_its_end(kind: str, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, kind)
    part = TextClassifier(folder, ["toxic"], stride=10, device="cpu")
    long = " ".join(f"{word} {number}" for number in range(9) for word in ("circle", "square", "cat", "image"))
    part.load()
    assert part._loaded is not None
    classifier, tokenizer, window, _ = part._loaded
    assert window == 32
    tokens = tokenizer(long, add_special_tokens=False)["input_ids"]
    room = window - tokenizer.num_special_tokens_to_add()
    pieces = [tokens[start : start + room] for start in range(0, len(tokens) - 10, room - 10)]
    assert len(pieces) > 3 and [token for piece in pieces[:-1] for token in piece[: room - 10]] + pieces[-1] == tokens
    with torch.no_grad():
        each = torch.stack([classifier(torch.tensor([piece])).logits[0].softmax(-1) for piece in pieces])
    highest = each.amax(0).tolist()
    assert list(part.scores([long])[0].values()) == pytest.approx(highest, abs=1e-5)
    first = each[0].tolist()  # what a text that is cut off would get
    assert max(abs(one - other) for one, other in zip(highest, first, strict=True)) > 1e-3


def test_the_worst_turn_and_label_speak(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "distilbert", problem_type="multi_label_classification")
    part = TextClassifier(folder, {"toxic": 0.5, "threat": 0.5}, stride=8, device="cpu")
    scores = part.scores(TEXTS[:4])
    finding = part([conversation(*TEXTS[:4], image=True)])[0]
    passed = {
        (n, label): found[label]
        for n, found in enumerate(scores)
        for label in ("toxic", "threat")
        if found[label] >= 0.5
    }
    assert passed, "no text is harmful to these weights; choose another seed"
    turn, label = max(passed, key=lambda key: passed[key])
    assert (finding.label, finding.where) == (label, f"turn {turn} ({'user' if turn % 2 == 0 else 'assistant'})")
    assert finding.score == pytest.approx(passed[turn, label]) and finding.assessment is Assessment.HARMFUL
    assert set(finding.categories) == {name for _, name in passed}
    strict = TextClassifier(folder, {"toxic": 1.0, "threat": 1.0}, stride=8, device="cpu")
    assert strict([conversation(*TEXTS[:4])])[0].assessment is Assessment.HARMLESS
    assert part([conversation("", image=True)])[0].assessment is Assessment.NOTHING
    answers = TextClassifier(folder, ["toxic"], roles=["assistant"], stride=8, device="cpu")
    assert answers([conversation(TEXTS[0])])[0].assessment is Assessment.NOTHING
    assert answers([Record("1", user_turn(TEXTS[0]), answers=(TEXTS[1],))])[0].where in ("", "reference 0")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": ["toxik"]}, "no label 'toxik'; did you mean 'toxic'?; it has ['toxic', 'threat', 'neutral']"),
        ({"labels": []}, r"labels is \[\]; expected a list"),
        ({"labels": "toxic"}, "labels is 'toxic'; expected a list"),
        ({"threshold": 0.0}, "threshold of 'toxic' is 0.0; expected a number above 0"),
        ({"labels": {"toxic": 2}}, "threshold of 'toxic' is 2"),
        ({"activation": "relu"}, "activation is 'relu'; expected one of auto"),
        ({"roles": ["asistant"]}, "did you mean 'assistant'?"),
        ({"roles": "user"}, "roles is 'user'; expected a list"),
        ({"stride": 40}, "windows of 32 tokens share stride=40"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": "/nowhere"}, "TextClassifier: model='/nowhere' cannot be loaded as a sequence classifier"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "distilbert")
    with pytest.raises(ValueError) as raised:
        TextClassifier(**{"model": folder, "labels": ["toxic"], "stride": 8, **settings}).load()
    assert said.replace("\\", "") in str(raised.value)


def test_a_model_without_its_head_is_no_classifier(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer({"pad_token": "<pad>"})
    config = DistilBertConfig(dim=32, hidden_dim=64, n_layers=1, n_heads=2, vocab_size=len(tokenizer))
    DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a sequence classifier: its file lacks the weights .*classifier"):
        TextClassifier(str(tmp_path), ["LABEL_0"]).load()


def test_a_model_that_overflows_has_no_verdict(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "distilbert")
    part = TextClassifier(folder, ["toxic"], device="cpu")
    part.load()
    assert part._loaded is not None
    with torch.no_grad():
        part._loaded[0].classifier.bias.fill_(math.nan)
    (finding,) = part([conversation(*TEXTS, " ".join(TEXTS * 9))])
    assert finding.assessment is Assessment.NO_VERDICT and "is not a number" in finding.detail
