"""Scores of questions of one ratio."""

from __future__ import annotations

import numpy as np

from hpa_lightning.merge.question_scores import QuestionScores


def scores(safety: float, task: float, seed: int, empty: str = "", questions: int = 400) -> QuestionScores:
    generator = np.random.default_rng(seed)
    drawn = {name: (generator.random(questions) < rate) * 1.0 for name, rate in (("harm", safety), ("charts", task))}
    ids = tuple(map(str, range(questions)))
    return QuestionScores({"harm": "safety", "charts": "task"}, drawn, dict.fromkeys(drawn, ids), empty)
