"""One meaning of a finished run, for stores, studies and reports."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpa_lightning.results.completeness import unfinished_run
from hpa_lightning.results.run_results import RunResults


def run(scores: list[float | None], end: int | None = None, **about: Any) -> RunResults:
    """A run of two tasks with the scores of a safety set, from the aligned model on."""
    sets = [{"name": "harm", "kind": "safety"}]
    records: list[dict[str, Any]] = [{"event": "run", "method": "M", "tasks": ["a", "b"], "sets": sets, **about}]
    for step, score in enumerate(scores, start=-1):
        values = {"set": "harm", "kind": "safety", "metric": "m", "score": score}
        records.append({"event": "score", "step": step, "after": None, **values})
    if end is not None:
        records.append({"event": "end", "finished_tasks": end, "tasks": 2})
    return RunResults(records)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_score_that_is_no_number_is_missed_by_name(missing: float | None) -> None:
    assert unfinished_run(run([0.1, 0.2, 0.3]), all_tasks=True) is None
    assert unfinished_run(run([0.1, 0.2, missing])) == "the score on harm after task 1 ('b') is not a number"
    assert unfinished_run(run([missing, 0.2, 0.3])) == "the score on harm of the aligned model is not a number"


def test_a_stream_that_was_ended_early_is_whole_and_counts_in_no_study() -> None:
    ended = run([0.1, 0.2], end=1)
    assert unfinished_run(ended) is None
    assert unfinished_run(ended, all_tasks=True) == "the stream was ended after 1 of 2 tasks"


def test_a_run_that_scored_the_aligned_model_alone_says_so() -> None:
    assert [run(scores).method for scores in ([0.1], [0.1, 0.2], [0.1, 0.2, 0.3])] == [
        "M (0 of 2 tasks)",
        "M (1 of 2 tasks)",
        "M",
    ]
    assert run([0.1], tested="model.ckpt").method == "M", "a model that was tested alone has no stream"
