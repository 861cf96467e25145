"""How well the drift of some blocks tells the loss of safety: rank correlations over runs and their steps.

The companion study (arXiv 2410.07571) sees hidden states part in the safety layers and asks whether that is why safety
is lost. If it is, the drift in these layers must tell the rise of attack success better than the drift in all blocks
and than that of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from hpa_lightning.report.drift_plots import safety_layers_of
from hpa_lightning.results.events import CurveEvent, DriftEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import MISSING, Cell, Table

_DRAWS = 2000


@dataclass(frozen=True)
class Moment:
    """One moment of one run: after a task, or within one.

    Args:
        run: its number.
        rise: of the mean attack success rate over the model before the first task, a fraction.
        measures: name of a measure of drift -> its value.
    """

    run: int
    rise: float
    measures: dict[str, float]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with the 95 % interval of a bootstrap over runs."""

    measure: str
    rho: float
    low: float
    high: float


def has_drift(run: RunResults) -> bool:
    """Whether drift and the rise of attack success were both measured at some step."""
    steps = {event.step for event in run.events(DriftEvent) if event.phase == "end"}
    return any(not math.isnan(run.summary(step)["DASR"]) for step in steps & set(run.steps))


def moments_of(runs: Sequence[RunResults], sets: Sequence[str] | None = None) -> list[Moment]:
    """Every moment of every run at which drift and attack success were both measured.

    The moments are the ends of tasks (``TaskEvaluation``), and the optimizer steps within tasks at which ``LayerDrift``
    and ``SafetyCurve`` both measured.

    Args:
        runs: with drift.
        sets: safety sets whose mean attack success counts; ``None``: those of the run's ``SafetyCurve`` where it has
            points within tasks, else all.

    Raises:
        ValueError: a run without drift, or no moment of both.
    """
    found = []
    for number, run in enumerate(runs):
        drifts = run.events(DriftEvent)
        if not any(event.phase == "end" for event in drifts):
            raise ValueError(f"{run.path} holds no drift; run it with the callback LayerDrift.")
        rises = _rises(run, sets)
        for phase, step, at in dict.fromkeys((event.phase, event.step, event.at) for event in drifts):
            rise = rises.get(("end", step) if phase == "end" else ("train", at), math.nan)
            if not math.isnan(rise):
                found.append(Moment(number, rise, _measures(run, phase, step, at)))
    if not found:
        raise ValueError("no step of these runs has both drift and attack success; evaluate them (TaskEvaluation).")
    return found


def _rises(run: RunResults, sets: Sequence[str] | None) -> dict[tuple[str, int], float]:
    """Rise of mean attack success over the model before the first task, at ends of tasks and at optimizer steps."""
    curve = _curve(run)
    start = curve.get(min(curve, default=-1), {})
    names = list(sets if sets is not None else _usual_sets(run, curve))
    found = {("end", step): run.mean_score(names, step) - run.mean_score(names, -1) for step in run.steps if step >= 0}
    if all(name in start for name in names):
        for at, scores in curve.items():
            rise = [scores.get(name, math.nan) - start[name] for name in names]
            found["train", at] = float(np.mean(rise))
    return found


def _curve(run: RunResults) -> dict[int, dict[str, float]]:
    """Attack success within tasks: optimizer step -> safety set -> score."""
    curve: dict[int, dict[str, float]] = {}
    for event in run.events(CurveEvent):
        if event.kind == "safety" and event.score is not None and event.moment != "end":
            curve.setdefault(event.optimizer_step, {})[event.set] = event.score
    return curve


def _usual_sets(run: RunResults, curve: Mapping[int, Mapping[str, float]]) -> list[str]:
    return list(curve[min(curve)]) if len(curve) > 1 else run.names("safety")


def sets_left_out(runs: Sequence[RunResults]) -> str:
    """Which safety sets the rise of attack success does not count in how many of the runs, a sentence; ``""`` if none.

    Args:
        runs: of :func:`drift_columns_table`.
    """
    missing: dict[str, int] = {}
    for run in runs:
        known = _usual_sets(run, _curve(run))
        for name in run.names("safety"):
            missing[name] = missing.get(name, 0) + (name not in known)
    absent = {name: count for name, count in missing.items() if count}
    if not absent:
        return ""
    counts = {name: "all" if count == len(runs) else str(count) for name, count in absent.items()}
    said = ", ".join(f"`{name}` in {count} of the runs" for name, count in counts.items())
    return f"MASR is here without the sets that were not measured within tasks (`SafetyCurve`): {said}."


def _measures(run: RunResults, phase: str, step: int, at: int) -> dict[str, float]:
    layers = safety_layers_of(run)
    profiles = {
        f"{event.set} prompts": 1 - np.array(event.cosine)
        for event in run.events(DriftEvent)
        if (event.phase, event.step, event.at) == (phase, step, at)
    }
    for moved in run.events(WeightDriftEvent):
        if (moved.phase, moved.step, moved.at) == (phase, step, at):
            profiles["weights"] = np.array(moved.blocks)
    measures = {}
    for name, profile in profiles.items():
        measures[f"{name}, all blocks"] = float(profile.mean())
        if layers is not None:
            measures[f"{name}, safety layers"] = float(profile[layers[0] - 1 : layers[1]].mean())
    return measures


def correlations(moments: Sequence[Moment], draws: int = _DRAWS, seed: int = 0) -> list[Correlation]:
    """Correlate each measure with the rise of attack success; the strongest first.

    Measures that some moment lacks are left out. Runs, not steps, are drawn in the bootstrap: the steps of a run are
    not independent. With fewer than three runs there is no interval (NaN).

    Args:
        moments: from :func:`moments_of`.
        draws: of the bootstrap.
        seed: of the draws.
    """
    names = [name for name in moments[0].measures if all(name in moment.measures for moment in moments)]
    runs = sorted({moment.run for moment in moments})
    rows = {run: [index for index, moment in enumerate(moments) if moment.run == run] for run in runs}
    rises = np.array([moment.rise for moment in moments])
    generator = np.random.default_rng(seed)
    drawn = [
        np.concatenate([rows[run] for run in generator.choice(runs, len(runs))])
        for _ in range(draws if len(runs) > 2 else 0)
    ]
    found = []
    for name in names:
        values = np.array([moment.measures[name] for moment in moments])
        sample = [rho for index in drawn if not math.isnan(rho := _rho(values[index], rises[index]))]
        low, high = np.quantile(sample, (0.025, 0.975)) if sample else (math.nan, math.nan)
        found.append(Correlation(name, _rho(values, rises), float(low), float(high)))
    return sorted(found, key=lambda one: -abs(one.rho) if not math.isnan(one.rho) else 1.0)


def drift_table(runs: Sequence[RunResults]) -> Table:
    """The correlations as a table."""
    rows: list[list[Cell]] = [[one.measure, one.rho, one.low, one.high] for one in correlations(moments_of(runs))]
    return Table(["Drift of", "Rank correlation", "95 % from", "to"], rows)


def drift_columns_table(runs: Sequence[RunResults], columns: Mapping[str, Sequence[str]]) -> Table:
    """The correlations with the rise of attack success on the safety sets, and on those of each column.

    The first, ``MASR``, is of the sets that :func:`moments_of` takes: not of all where ``SafetyCurve`` measured some
    alone (:func:`sets_left_out`). Columns of sets that are no safety sets are left out. In the order of the first
    correlation, the strongest first.
    """
    safety = {name for run in runs for name in run.names("safety")}
    chosen = {"MASR": sorted(safety)} | {name: sets for name, sets in columns.items() if safety >= {*sets}}
    found = {}
    for name, sets in chosen.items():
        with_curve = None if name == "MASR" else sets
        found[name] = {one.measure: one for one in correlations(moments_of(runs, with_curve))}
    rows: list[list[Cell]] = [
        [measure, *(_in_words(found[name].get(measure)) for name in found)] for measure in found["MASR"]
    ]
    return Table(["Drift of", *found], rows)


def _in_words(found: Correlation | None) -> str:
    if found is None or math.isnan(found.rho):
        return MISSING
    interval = "" if math.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.rho:.2f}{interval}"


def _rho(values: np.ndarray, rises: np.ndarray) -> float:
    """NaN where one of them does not vary."""
    if np.ptp(values) == 0 or np.ptp(rises) == 0:
        return math.nan
    return float(spearmanr(values, rises).statistic)
