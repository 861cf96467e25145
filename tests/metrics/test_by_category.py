"""Figures of categories, made of stored answers."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.metrics.by_category import category_scores, figures, further_figures


def answers(verdicts: str, category: str | None = None) -> list[dict[str, Any]]:
    categories = {} if category is None else {"domain": category}
    return [{"id": str(i), "verdict": mark == "y", "categories": categories} for i, mark in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("attack_success_rate", 0.25), ("over_refusal_rate", 0.75), ("choice_accuracy", 0.75)],
)
def test_verdicts_count_for_or_against_a_rate(metric: str, expected: float) -> None:
    assert figures(metric, answers("yyyn")) == {"score": expected}


def test_scores_are_averaged_and_an_answer_that_was_not_scored_leaves_nothing() -> None:
    rows = [{"score": 0.5}, {"score": 1.0}]
    assert figures("token_f1", rows) == {"score": 0.75} and further_figures("token_f1", rows) == {}
    assert figures("token_f1", [*rows, {"score": None}]) == {} == figures("token_f1", [])
    assert category_scores("cider", [{"categories": {"domain": "a"}}]) == {}


def test_every_category_of_every_scheme_has_its_own_figures_in_the_records_order() -> None:
    rows = answers("yn", "fraud") + answers("yyy", "weapons") + answers("n")
    rows[0]["categories"] = {"domain": "fraud", "source": "web"}
    found = category_scores("attack_success_rate", rows)["categories"]
    assert found == {
        "domain": {"fraud": {"n": 2, "score": 0.5}, "weapons": {"n": 3, "score": 0.0}},
        "source": {"web": {"n": 1, "score": 0.0}},
    }
    assert list(found["domain"]) == ["fraud", "weapons"]
