"""How well the drift of some blocks tells the loss of safety: rank correlations over runs and their steps.

The companion study (arXiv 2410.07571) sees hidden states part in the safety layers and asks whether that is why safety
is lost. If it is, the drift in these layers must tell the rise of attack success better than the drift in all blocks
and than that of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from hpa_lightning.report.drift_plots import safety_layers_of
from hpa_lightning.results.events import DriftEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Cell, Table

_DRAWS = 2000


@dataclass(frozen=True)
class Moment:
    """One step of one run.

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


def moments_of(runs: Sequence[RunResults]) -> list[Moment]:
    """Every step of every run at which drift and attack success were both measured.

    Raises:
        ValueError: a run without drift, or none with a step of both.
    """
    found = []
    for number, run in enumerate(runs):
        layers = safety_layers_of(run)
        drifts = [event for event in run.events(DriftEvent) if event.phase == "end"]
        if not drifts:
            raise ValueError(f"{run.path} holds no drift; run it with the callback LayerDrift.")
        weights = {event.step: event.blocks for event in run.events(WeightDriftEvent) if event.phase == "end"}
        for step in sorted({event.step for event in drifts}):
            rise = run.summary(step)["DASR"] if step in run.steps else math.nan
            if math.isnan(rise):
                continue
            measures = {}
            for event in drifts:
                if event.step == step:
                    drift = 1 - np.array(event.cosine)
                    measures[f"{event.set} prompts, all blocks"] = float(drift.mean())
                    if layers is not None:
                        inside = drift[layers[0] - 1 : layers[1]]
                        measures[f"{event.set} prompts, safety layers"] = float(inside.mean())
            if step in weights:
                measures["weights, all blocks"] = float(np.mean(weights[step]))
                if layers is not None:
                    measures["weights, safety layers"] = float(np.mean(weights[step][layers[0] - 1 : layers[1]]))
            found.append(Moment(number, rise, measures))
    if not found:
        raise ValueError("no step of these runs has both drift and attack success; evaluate them (TaskEvaluation).")
    return found


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


def _rho(values: np.ndarray, rises: np.ndarray) -> float:
    """NaN where one of them does not vary."""
    if np.ptp(values) == 0 or np.ptp(rises) == 0:
        return math.nan
    return float(spearmanr(values, rises).statistic)
