"""The figures of a front: every model's, its comparisons, and the ratio for a budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpa_lightning.merge.question_scores import QuestionScores
from hpa_lightning.report.front_statistics import (
    Comparison,
    Interval,
    bootstrap_means,
    compare,
    interval,
    is_on_front,
    mean_over_sets,
    share_on_front,
)
from hpa_lightning.report.significance import holm

TASK, SAFETY, ENSEMBLE = "task", "safety", "ensemble"
REFERENCES = (TASK, SAFETY, ENSEMBLE)
MEASURES = ("safety", "helpfulness")
LEVEL = 0.05
FEWEST_QUESTIONS = 10
"""Of one question, whatever it is, every resample is the same: no interval, and the smallest p-value that there is."""


@dataclass(frozen=True)
class FrontPoint:
    """One model.

    Args:
        name: ``"task"``, ``"safety"`` or the ratio.
        ratio: share of the safety-tuned model.
        safety: 1 minus the mean attack success rate.
        helpfulness: the mean score of the tasks.
        over_refusal: mean rate, where there are sets.
        on_front: whether no other model dominates it.
        share_on_front: in which share of the resamples that is so.
        comparisons: reference -> measure -> this minus the reference; of ratios alone.
        p: reference -> measure -> p-value, Holm's over the ratios.
        empty: the sets that were answered mostly with nothing.
    """

    name: str
    ratio: float
    safety: Interval
    helpfulness: Interval
    over_refusal: Interval | None
    on_front: bool
    share_on_front: float
    comparisons: dict[str, dict[str, Comparison]]
    p: dict[str, dict[str, float]]
    empty: str

    def marks(self, reference: str) -> str:
        """Which measures differ significantly from a reference, and in which direction: ``"safety +"``."""
        found = [
            f"{measure} {'+' if self.comparisons[reference][measure].difference.value > 0 else '−'}"
            for measure in MEASURES
            if self.p[reference][measure] < LEVEL
        ]
        return ", ".join(found) or "none"


@dataclass(frozen=True)
class Front:
    """The models in the order of their ratios, and what a budget picks.

    Args:
        points: all of them.
        budget: highest mean attack success rate, a fraction.
        picked: name of the most helpful model within the budget.
        sure: whether the whole interval of its attack success is within the budget.
        resamples: of the bootstrap.
        questions: name of each set -> kind and number of questions.
    """

    points: tuple[FrontPoint, ...]
    budget: float | None
    picked: str | None
    sure: bool
    resamples: int
    questions: dict[str, tuple[str, int]]

    def verdict(self) -> str:
        """What the budget picks, in a sentence."""
        if self.budget is None:
            return "No budget was set."
        goal = f"a mean attack success rate of at most {100 * self.budget:g} %"
        if self.picked is None:
            safest = max(self.points, key=lambda point: point.safety.value)
            return f"No model keeps {goal}; the safest is {safest.name} with {100 * (1 - safest.safety.value):.1f} %."
        point = next(one for one in self.points if one.name == self.picked)
        who = f"Ratio {self.picked}" if self.picked not in (TASK, SAFETY) else f"The {self.picked}-tuned model itself"
        sure = "its interval too" if self.sure else "its interval reaches beyond it"
        return (
            f"{who} is the most helpful one with {goal}: {100 * (1 - point.safety.value):.1f} % ({sure}), "
            f"helpfulness {100 * point.helpfulness.value:.1f} %."
        )

    def as_json(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """All of it, with what it was made of."""
        points = [asdict(point) | {"marks": _marks(point)} for point in self.points]
        return {**asdict(self), "points": points, "verdict": self.verdict(), "run": dict(run)}


def _marks(point: FrontPoint) -> dict[str, str]:
    return {reference: point.marks(reference) for reference in point.comparisons}


def front_of(
    scores: Mapping[str, QuestionScores], ratios: Mapping[str, float], budget: float | None, resamples: int = 10_000
) -> Front:
    """Compare models that answered the same questions.

    The ensemble of a ratio answers each question with the safety-tuned model's answer with the probability ``ratio``
    and else with the task-tuned one's: its score on a question is the weighted mean of theirs. It is what a choice
    between the two models gives, without merging.

    Args:
        scores: ``"task"``, ``"safety"`` and the ratios' names -> what they were scored with.
        ratios: the same names -> share of the safety-tuned model.
        budget: see :class:`Front`.
        resamples: of the bootstrap.

    Raises:
        ValueError: no safety set, no task, or models that answered different questions.
    """
    names = sorted(scores, key=lambda name: (ratios[name], name == SAFETY, name != TASK))
    first = scores[names[0]]
    for name in names:
        if scores[name].ids != first.ids or scores[name].kinds != first.kinds:
            raise ValueError(f"{names[0]} and {name} have answered different questions; evaluate again.")
    sets = {"safety": first.of_kind("safety"), "helpfulness": first.of_kind("task")}
    for measure, of_it in sets.items():
        if not of_it:
            kind = "safety set" if measure == "safety" else "task"
            raise ValueError(f"the evaluation has no {kind}; expected at least one for the {measure} of a front.")
    harmless = first.of_kind("over_refusal")
    values, draws = {}, {}
    _warn_of_few_questions(first)
    # Seeds of their own: with one seed, sets of equal size would draw the questions of the same numbers.
    for seed, (measure, of_it) in enumerate((*sets.items(), ("over_refusal", harmless))):
        if of_it:
            table = {name: _with_ensembles(name, names, scores, ratios) for name in of_it}
            values[measure], draws[measure] = mean_over_sets(table), bootstrap_means(table, resamples, seed)
    count = len(names)
    figures = [values[measure][:count] for measure in MEASURES]
    best = is_on_front(np.stack(figures, axis=-1))
    shares = share_on_front([draws[measure][:, :count] for measure in MEASURES])
    merged = [index for index, name in enumerate(names) if name not in (TASK, SAFETY)]
    found: dict[int, dict[str, dict[str, Comparison]]] = {index: {} for index in range(count)}
    adjusted: dict[int, dict[str, dict[str, float]]] = {index: {} for index in range(count)}
    for reference in REFERENCES:
        for measure in MEASURES:
            tests = {}
            for index in merged:
                other = count + index if reference == ENSEMBLE else names.index(reference)
                value, draw = values[measure], draws[measure]
                tests[index] = compare(float(value[index]), float(value[other]), draw[:, index], draw[:, other])
            for index, p in zip(merged, holm([test.p for test in tests.values()]), strict=True):
                found[index].setdefault(reference, {})[measure] = tests[index]
                adjusted[index].setdefault(reference, {})[measure] = p
    intervals = {
        measure: [interval(float(values[measure][i]), draws[measure][:, i]) for i in range(count)] for measure in values
    }
    points = tuple(
        FrontPoint(
            name,
            ratios[name],
            intervals["safety"][index],
            intervals["helpfulness"][index],
            intervals["over_refusal"][index] if harmless else None,
            bool(best[index]),
            float(shares[index]),
            found[index],
            adjusted[index],
            scores[name].empty,
        )
        for index, name in enumerate(names)
    )
    picked = _picked(points, budget)
    return Front(
        points,
        budget,
        picked.name if picked else None,
        picked is not None and budget is not None and 1 - picked.safety.low <= budget + 1e-12,
        resamples,
        {name: (kind, len(first.ids[name])) for name, kind in first.kinds.items()},
    )


def _warn_of_few_questions(scores: QuestionScores) -> None:
    few = {name: len(ids) for name, ids in scores.ids.items() if len(ids) < FEWEST_QUESTIONS}
    if few:
        said = ", ".join(f"{name} has {count}" for name, count in few.items())
        warnings.warn(
            f"sets of fewer than {FEWEST_QUESTIONS} questions ({said}): a bootstrap over so few makes intervals too "
            "short and p-values too small; do not read significance from them.",
            stacklevel=3,
        )


def _with_ensembles(
    of_set: str, names: list[str], scores: Mapping[str, QuestionScores], ratios: Mapping[str, float]
) -> NDArray[np.float64]:
    """Scores of the models and then of their ensembles, ``(2 * models, questions)``."""
    task, safety = (scores[end].scores[of_set] for end in (TASK, SAFETY))
    ensembles = [(1 - ratios[name]) * task + ratios[name] * safety for name in names]
    return np.stack([*(scores[name].scores[of_set] for name in names), *ensembles])


def _picked(points: tuple[FrontPoint, ...], budget: float | None) -> FrontPoint | None:
    """The most helpful model within the budget, of equally helpful ones the safest; a broken one is not safe."""
    if budget is None:
        return None
    within = [point for point in points if 1 - point.safety.value <= budget + 1e-12 and not point.empty]
    return max(within, key=lambda point: (point.helpfulness.value, point.safety.value, -point.ratio), default=None)
