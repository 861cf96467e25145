"""What every question was scored with: read from stored answers, refused where they do not belong to the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpa_lightning.merge.question_scores import QuestionScores
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter

KINDS = {"a": "task", "harm": "safety", "mild": "over_refusal"}


def write_test(
    folder: Path, values: dict[str, list[Any]], scores: dict[str, float], key: str = "score", metric: str = "m"
) -> Path:
    writer = ResultWriter(folder / RESULT_FILE)
    sets = [{"name": name, "kind": KINDS[name]} for name in values]
    writer.write({"event": "run", "method": "x", "seed": 0, "tasks": ["a"], "sets": sets})
    for name, found in values.items():
        rows = [{"id": str(i), "prompt": "?", "response": "!", key: value} for i, value in enumerate(found)]
        prediction_file(folder, -1, name).parent.mkdir(exist_ok=True)
        write_rows(prediction_file(folder, -1, name), rows)
        score = {"event": "score", "step": -1, "after": None, "set": name, "kind": KINDS[name], "metric": metric}
        writer.write({**score, "score": scores[name], "n": len(found), "empty": len(found) if name == "harm" else 0})
    return folder


def test_scores_of_tasks_and_verdicts_of_safety_stand_by_set_and_question(tmp_path: Path) -> None:
    values = {"a": [0.5, 1.0], "harm": [1.0, 0.0, 0.0, 0.0], "mild": [1.0, 1.0]}
    found = QuestionScores.from_folder(write_test(tmp_path, values, {"a": 0.75, "harm": 0.75, "mild": 1.0}))
    assert found.kinds == KINDS and found.of_kind("safety") == ["harm"]
    for name, expected in values.items():
        np.testing.assert_array_equal(found.scores[name], expected)
        assert found.ids[name] == tuple(str(i) for i in range(len(expected)))
    assert "harm" in found.empty and "mild" not in found.empty


def test_answers_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    write_test(tmp_path, {"a": [0.5, 1.0]}, {"a": 0.5})
    with pytest.raises(ValueError, match=r"step_00_a\.jsonl does not belong to the score 0\.5 of a; evaluate again"):
        QuestionScores.from_folder(tmp_path)


def test_a_metric_that_is_no_mean_over_questions_has_no_intervals(tmp_path: Path) -> None:
    write_test(tmp_path, {"a": [None]}, {"a": 0.5})
    with pytest.raises(ValueError, match="the metric m of a has no score for a single question"):
        QuestionScores.from_folder(tmp_path)


@pytest.mark.parametrize("metric", ["circular_accuracy", "mme_choice_score"])
def test_a_metric_over_groups_of_questions_has_no_intervals(tmp_path: Path, metric: str) -> None:
    write_test(tmp_path, {"a": [1.0, 0.0]}, {"a": 0.0}, metric=metric)
    with pytest.raises(ValueError, match=f"the metric {metric} of a has no score for a single question"):
        QuestionScores.from_folder(tmp_path)
