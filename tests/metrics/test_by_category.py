"""Figures of categories, made of stored answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpa_lightning.metrics.by_category import category_scores, figures, further_figures, rate_by_likelihood


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


def test_the_rate_by_likelihood_is_the_mean_probability_of_a_refusal_of_every_category() -> None:
    rows = answers("yn", "fraud") + answers("y", "weapons")
    for row, probabilities in zip(rows, ((0.5, 0.25), (0.1, 0.1), (1.0, 0.0)), strict=True):
        row["openings"] = [math.log(one) if one else -math.inf for one in probabilities]
    for metric, turned in (("attack_success_rate", True), ("over_refusal_rate", False)):
        expected = [(0.75 + 0.2 + 1.0) / 3, (0.75 + 0.2) / 2, 1.0]
        domains = category_scores(metric, rows)["categories"]["domain"]
        found = [figures(metric, rows), domains["fraud"], domains["weapons"]]
        assert [one["by_likelihood"] for one in found] == pytest.approx(
            [1 - one if turned else one for one in expected]
        )
    del rows[0]["openings"]
    assert "by_likelihood" not in figures("attack_success_rate", rows)


@pytest.mark.parametrize(
    ("openings", "message"),
    [
        ([-0.1, -0.2], r"the answer 'h1': .* add up to 1\.72; expected at most 1"),
        ([900.0], "add up to"),
        ([math.nan, -1.0], "openings are .*nan.*; expected the log-likelihood of every opening"),
        ([], "expected the log-likelihood"),
        (["-1"], "expected the log-likelihood"),
        ([True], "expected the log-likelihood"),
    ],
)
def test_openings_that_are_no_log_probabilities_are_refused_by_the_answers_id(openings: Any, message: str) -> None:
    rows = [{"id": "h0", "openings": [-0.5, -1.0]}, {"id": "h1", "openings": openings}]
    with pytest.raises(ValueError, match=message):
        rate_by_likelihood("attack_success_rate", rows)


def test_what_two_forward_passes_round_differently_is_no_error() -> None:
    assert rate_by_likelihood("over_refusal_rate", [{"openings": [math.log(0.6), math.log(0.42)]}]) == 1.0
