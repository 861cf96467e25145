"""The checks fail loudly on noise."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from support.towers import LANGUAGE, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.smol.load_checks import (
    SENTENCES,
    check_classifier,
    check_language_model,
    check_tower,
    neighbour_accuracy,
    perplexity,
)


def noise() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), **LANGUAGE)).eval()


def test_perplexity_is_that_of_the_tokens() -> None:
    """By hand, token by token over all texts."""
    model, words = noise(), tokenizer()
    total, count = 0.0, 0
    for text in SENTENCES[:2]:
        ids = words(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = model(ids).logits[0].double().log_softmax(-1)
        for place in range(1, ids.shape[1]):
            total -= float(scores[place - 1, ids[0, place]])
            count += 1
    assert perplexity(model, words, SENTENCES[:2]) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_noise_is_no_language_model() -> None:
    with pytest.raises(ValueError, match=r"perplexity of [0-9,.]+ on plain sentences; expected at most 30"):
        check_language_model(noise(), tokenizer())


def test_noise_knows_no_photograph() -> None:
    with pytest.raises(ValueError, match=r"class \d+ of ImageNet; expected"):
        check_classifier(timm.create_model("test_convnext").eval())


def test_neighbours_are_those_of_scikit_learn() -> None:
    digits, labels = load_digits(return_X_y=True)
    digits, labels = digits[:200], labels[:200]
    centred = digits - digits.mean(axis=0)
    wanted = cross_val_score(KNeighborsClassifier(1, metric="cosine"), centred, labels, cv=LeaveOneOut()).mean()
    found = neighbour_accuracy(torch.from_numpy(digits).float(), labels.tolist())
    assert found == pytest.approx(wanted)


def test_a_tower_that_is_noise() -> None:
    torch.manual_seed(0)
    tower = timm.create_model("test_convnext", num_classes=0).eval()
    pictures = [torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy() for _ in range(12)]
    with pytest.raises(ValueError, match=r"of 12 pictures have a nearest neighbour of their own kind.*at least 90%"):
        check_tower(tower, pictures, [number % 3 for number in range(12)], at_least=0.9)
    assert check_tower(tower, pictures * 2, list(range(12)) * 2, at_least=0.9) == 1.0  # each beside its twin
