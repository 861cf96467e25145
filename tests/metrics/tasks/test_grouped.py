"""Circular accuracy and MME's points against the programs that others score with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.published_layouts import (
    mmbench_predictions,
    mmbench_rows,
    mme_pairs,
    mme_predictions,
    write_mmbench,
    write_mme,
)

from hpa_lightning.data import MME, MMBench, Record
from hpa_lightning.metrics import build_metric
from hpa_lightning.metrics.by_category import category_scores, figures
from hpa_lightning.metrics.scoring import score_answers
from hpa_lightning.metrics.tasks.grouped import CircularAccuracy, CircularChoiceAccuracy, MMEScore

# VLMEvalKit (commit e8e78f05, exact matching) on these 120 questions and answers: `mcq_circular_eval`, and `report_acc`
# by split; "vanilla" is its `can_infer` on the first rows.
CIRCULAR = 76 / 120
VANILLA = 100 / 120
BY_SPLIT = {
    "category": {
        "test": {"identity_reasoning": 0.7, "object_localization": 0.9, "ocr": 0.6},
        "dev": {"identity_reasoning": 19 / 30, "object_localization": 23 / 30, "ocr": 0.4},
    },
    "l2-category": {
        "test": {"attribute_reasoning": 22 / 30},
        "dev": {"attribute_reasoning": 19 / 30, "coarse_perception": 35 / 60},
    },
}
# MME's calculation.py and VLMEvalKit's `MME_rating` on these answers: accuracy, accuracy+, points of each subtask.
MME_SUBTASKS = {
    "existence": (0.75, 0.5, 125.0),
    "count": (0.7, 0.4, 110.0),
    "artwork": (11 / 14, 5 / 7, 150.0),
    "OCR": (0.875, 0.75, 162.5),
    "code_reasoning": (0.8, 0.8, 160.0),
    "text_translation": (5 / 6, 2 / 3, 150.0),
}
MME_ABILITIES = {"perception": 547.5, "cognition": 310.0}


def rows_of(metric_name: str, records: list[Record], predictions: list[str]) -> tuple[float, list[dict]]:
    metric = build_metric(metric_name)
    parts = []
    for start in range(0, len(records), 7):  # a question's rows are in several batches
        part, said = records[start : start + 7], predictions[start : start + 7]
        places = [record.group for record in part], [record.categories for record in part]
        parts += score_answers(metric, said, [record.answers for record in part], [""] * len(part), *places)
    kept = zip(records, parts, strict=True)
    rows = [{"id": r.id, "group": r.group, "categories": dict(r.categories), **found} for r, found in kept]
    return float(metric.compute()), rows


def test_circular_accuracy_is_that_of_vlmevalkit(tmp_path: Path) -> None:
    rows = mmbench_rows(120)
    records = MMBench(str(write_mmbench(tmp_path / "MMBench.tsv", rows))).read()
    score, scored = rows_of("circular_accuracy", records, mmbench_predictions(rows))
    assert score == pytest.approx(CIRCULAR)
    expected = {"score": CIRCULAR, "vanilla": VANILLA, "accuracy": 325 / 381}
    assert figures("circular_accuracy", scored) == pytest.approx(expected)
    for scheme, splits in BY_SPLIT.items():
        for split, wanted in splits.items():
            part = [row for row in scored if row["categories"]["split"] == split]
            found = category_scores("circular_accuracy", part)["categories"][scheme]
            assert {name: entry["score"] for name, entry in found.items()} == pytest.approx(wanted)


def test_points_of_mme_are_those_of_its_own_script(tmp_path: Path) -> None:
    pairs = mme_pairs()
    with pytest.warns(UserWarning, match="6 of MME's 14 subtasks"):
        records = MME(str(write_mme(tmp_path / "mme", pairs))).read()
    said = {pair[:3]: answer for pair, answer in zip(pairs, mme_predictions(pairs), strict=True)}
    score, scored = rows_of("mme_score", records, [said[r.categories["subtask"], r.group, r.prompt] for r in records])
    assert score == pytest.approx(857.5 / 1200)
    found = category_scores("mme_score", scored)["categories"]
    for subtask, (accuracy, plus, points) in MME_SUBTASKS.items():
        entry = found["subtask"][subtask]
        assert (entry["accuracy"], entry["accuracy_plus"], entry["points"]) == pytest.approx((accuracy, plus, points))
    assert {name: entry["points"] for name, entry in found["ability"].items()} == pytest.approx(MME_ABILITIES)
    assert figures("mme_score", scored)["points"] == pytest.approx(857.5)


def test_records_without_a_group_are_told() -> None:
    with pytest.raises(ValueError, match="1 of 2 have no group"):
        CircularAccuracy().update(["A", "B"], [("A",), ("B",)], ["1", ""])


@pytest.mark.parametrize("metric", [CircularAccuracy, MMEScore, CircularChoiceAccuracy])
def test_nothing_to_score_is_nan(metric: type) -> None:
    with pytest.warns(UserWarning, match="has seen no prediction"):
        assert metric().compute().isnan()


def test_the_answer_of_mme_is_yes_or_no() -> None:
    with pytest.raises(ValueError, match="expected yes or no"):
        MMEScore().scores(["Yes"], [("maybe",)])
