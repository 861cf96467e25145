"""No text of a model, however long or odd, keeps a scorer busy."""

import time

import pytest

from hpa_lightning.metrics import METRICS, build_metric
from hpa_lightning.metrics.tasks.grouped import GroupedMetric

LONG = 20_000
ODD = {
    "letters": "b" * LONG,
    "spaces": "b" + " " * LONG + "b",
    "newlines": "B" + "\n" * LONG + "B",
    "brackets": "[" * LONG,
    "open boxes": "[1, 2, " * (LONG // 7),
    "half boxes": "[1" + " " * LONG + "x",
    "pairs": "(1, 2), " * (LONG // 8),
    "digits": "1" * LONG,
    "thousands": "1" + ",000" * (LONG // 4) + "x",
    "numbers": "1 " * (LONG // 2),
    "options": "A. a " * (LONG // 5),
    "list": "A, " * (LONG // 3),
    "answers": "the answer is " * (LONG // 14),
    "lead-in": "the correct right best final " * (LONG // 29),
    "apostrophes": "n't've'" * (LONG // 7),
    "marks": "?!.,-' " * (LONG // 7),
}


@pytest.mark.parametrize("name", [name for name in METRICS if not name.endswith("_rate")])
@pytest.mark.parametrize("kind", ODD)
def test_long_and_odd_texts_are_scored_at_once(name: str, kind: str) -> None:
    reference = {"grounding_accuracy": "[0, 0, 1, 1]", "mme_score": "yes"}.get(name, "b")
    metric = build_metric(name)
    groups = [["1", "2"]] if isinstance(metric, GroupedMetric) else []
    start = time.perf_counter()
    metric.update([ODD[kind], ""], [(reference,) * 4] * 2, *groups)
    assert 0.0 <= float(metric.compute()) <= 0.5
    assert time.perf_counter() - start < 5, "a regular expression backtracks"
