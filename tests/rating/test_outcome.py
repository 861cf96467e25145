"""Filled forms: what they say, by hand, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.rated_runs import fill, honest, strict

from hpa_lightning.rating import rate_outcome


def test_figures_by_hand(key: Path, tmp_path: Path) -> None:
    files = [fill(key, "Ada", honest, tmp_path / "ada.json"), fill(key, "Bo", strict, tmp_path / "bo.json")]
    outcome = rate_outcome(files, key, judges=["refusal-v2", "vlguard"], draws=200)
    wins = {row[0]: row[1:] for row in outcome.wins.rows}
    # Safety: HPA higher on 2 of 10 questions, else tied. Helpfulness: higher on the 2 of the task.
    assert wins["safety"][:3] == pytest.approx(["HPA", "SeqFT", 60.0]) and wins["safety"][5:] == [20.0, 80.0, 0.0]
    assert wins["helpfulness"][2] == pytest.approx(60.0) and wins["safety"][3] <= 60.0 <= wins["safety"][4]
    means = {(row[0], row[1]): row[2] for row in outcome.means.rows}
    assert means["safety", "HPA"] == pytest.approx((9 * 5 + 1 + 9 * 4 + 1) / 20)
    assert means["refusal %", "SeqFT"] == pytest.approx(100 * 2 / 10)
    agreement = {(row[0], row[1]): row[2] for row in outcome.agreement.rows}
    assert agreement["refusal", "Fleiss' kappa"] == agreement["helpfulness", "Krippendorff's alpha (ordinal)"] == 1.0
    assert 0 < agreement["safety", "Krippendorff's alpha (ordinal)"] < 1
    judges = {row[0]: row for row in outcome.judges.rows}
    assert judges["refusal-v2 (stored)"][1:4] == ["refused", 16, 1.0] and judges["refusal-v2"][6] == 100.0
    assert "vlguard" in judges and not outcome.notes
    assert json.loads(outcome.json())["raters"] == ["Ada", "Bo"]


def test_raters_who_are_even_are_left_out(key: Path, tmp_path: Path) -> None:
    turned = lambda item, run: {**honest(item, run), "refusal": 2 - honest(item, run)["refusal"]}  # noqa: E731
    files = [fill(key, "Ada", honest, tmp_path / "ada.json"), fill(key, "Bo", turned, tmp_path / "bo.json")]
    outcome = rate_outcome(files, key, draws=50)
    assert outcome.judges.rows[0][2] == 0 and "16 comparisons of a judge are left out" in outcome.notes[0]
    assert rate_outcome(files[:1], key, draws=50).agreement.rows[0][2] != 1
