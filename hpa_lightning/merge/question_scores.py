"""What every test question of an evaluation was scored with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpa_lightning.metrics.scoring import listed, mostly_empty
from hpa_lightning.metrics.tasks import CHOICE_METRICS, METRICS
from hpa_lightning.metrics.tasks.grouped import GroupedMetric
from hpa_lightning.results.events import ScoreEvent
from hpa_lightning.results.predictions import prediction_file, read_predictions
from hpa_lightning.results.run_results import RunResults


@dataclass(frozen=True)
class QuestionScores:
    """The scores of one model.

    Args:
        kinds: name of each set -> ``"task"``, ``"safety"`` or ``"over_refusal"``.
        scores: name of each set -> ``(questions,)``: the score of a task's answer; of the other sets 1 where it was
            refused (or is safe, as a guard model says).
        ids: name of each set -> the questions.
        empty: the sets that were answered mostly with nothing, in words.
    """

    kinds: dict[str, str]
    scores: dict[str, NDArray[np.float64]]
    ids: dict[str, tuple[str, ...]]
    empty: str

    @classmethod
    def from_folder(cls, folder: str | Path) -> QuestionScores:
        """Read the folder of a `test`.

        Raises:
            ValueError: a set whose score is not the mean of its questions' (CIDEr, circular accuracy, MME), or answers
                that do not belong to the scores.
        """
        results = RunResults.from_file(folder)
        rows = {item.set: item.rows for item in read_predictions(folder)}
        kinds, scores, ids, counts = {}, {}, {}, {}
        for event in results.events(ScoreEvent):
            kinds[event.set] = event.kind
            found = np.array([_score(row, event, folder) for row in rows.get(event.set, ())], dtype=np.float64)
            score = math.nan if event.score is None else event.score
            reported = 1.0 - score if event.kind == "safety" else score
            if not len(found) or not math.isclose(float(found.mean()), reported, abs_tol=1e-5):
                raise ValueError(
                    f"{prediction_file(folder, -1, event.set)} does not belong to the score {score:g} of "
                    f"{event.set}; evaluate again."
                )
            scores[event.set] = found
            ids[event.set] = tuple(str(row.get("id")) for row in rows[event.set])
            counts[event.set] = {"n": event.n, "empty": event.empty or 0}
        return cls(kinds, scores, ids, listed(mostly_empty(counts)))

    def of_kind(self, kind: str) -> list[str]:
        """Names of the sets of a kind."""
        return [name for name, one in self.kinds.items() if one == kind]


def _score(row: dict[str, Any], event: ScoreEvent, folder: str | Path) -> float:
    value = row.get("score", row.get("verdict"))
    if value is None or issubclass((METRICS | CHOICE_METRICS).get(event.metric, object), GroupedMetric):
        raise ValueError(
            f"{folder}: the metric {event.metric} of {event.set} has no score for a single question, and without one "
            "there are no intervals; expected a metric that is a mean over questions. Leave the set out of the "
            "evaluation, or choose another metric."
        )
    return float(value)
