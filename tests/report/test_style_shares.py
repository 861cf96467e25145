"""Figures that are no shares, CIDEr and points: in plots, in tables, and what is cut at 0 and 100."""

from __future__ import annotations

from typing import Any

import pytest
from support.study_cells import cell, two_tasks

from hpa_lightning.report.plots import plot_steps, plot_trade_off
from hpa_lightning.report.safety_curve_plot import plot_safety_curve
from hpa_lightning.report.study_columns import plot_columns
from hpa_lightning.report.study_plots import plot_against_performance, plot_sweep
from hpa_lightning.report.study_report import StudyGroup, comparison_table, write_study_report
from hpa_lightning.report.style import close_ends, interval_ends, whole_ends
from hpa_lightning.results.run_results import RunResults, is_count


def rescored(run: RunResults, names: tuple[str, ...], **changes: Any) -> RunResults:
    return RunResults([{**one, **changes} if one.get("set") in names else one for one in run.records])


def captions(score: float, asr: float = 0.3) -> RunResults:
    """Two tasks of captions, CIDEr."""
    return rescored(two_tasks(score, score, score, asr), ("digits", "charts"), metric="cider")


SCORES = (1.3, 1.6, 2.2)


def test_what_is_a_share_is_known_by_its_metric_or_its_values() -> None:
    assert captions(0.5).is_share("attack") and not captions(0.5).is_share("digits")
    assert two_tasks(0.9, 0.8, 0.5, 0.4).is_share("digits") and not two_tasks(0.9, 1.2, 0.5, 0.4).is_share("charts")
    run = rescored(two_tasks(0.9, 0.8, 0.5, 0.4), ("digits",), figures={"points": 0.5, "by_likelihood": 0.5})
    assert run.is_share("digits/by_likelihood") and not run.is_share("digits/points")
    assert [is_count(name) for name in ("digits/points", "points", "digits")] == [True, False, False]


def test_intervals_of_shares_alone_are_cut_and_axes_hold_what_is_drawn() -> None:
    assert interval_ends(95.0, 10.0) == (85.0, 100.0) and interval_ends(95.0, 10.0, share=False) == (85.0, 105.0)
    assert interval_ends(5.0, 10.0) == (0.0, 15.0) and interval_ends(5.0, float("nan")) == (5.0, 5.0)
    assert close_ends(90.0, 100.0) == (88.5, 101.5) and close_ends(0.0, 100.0) == (-4.0, 104.0)
    assert close_ends(120.0, 220.0, share=False) == (108.0, 232.0)
    assert whole_ends(0.0, 50.0) == (-3.0, 103.0) and whole_ends(-10.0, 190.0) == (-16.0, 196.0)


def test_the_trade_off_of_cider_above_100_is_seen() -> None:
    for groups in ({"A": [captions(score) for score in SCORES]}, {"A": [captions(SCORES[0])]}):
        (ax,) = plot_against_performance(groups, "MASR").axes
        low, high = ax.get_ylim()
        mean = 100 * sum(run.summary()["AP"] for run in groups["A"]) / len(groups["A"])
        assert low < mean < high
    shares = {"A": [two_tasks(0.99, 0.99, kept, 0.3) for kept in (0.6, 0.9, 0.99)]}
    assert plot_against_performance(shares, "MASR").axes[0].get_ylim()[1] <= 104.0


def test_the_column_of_cider_above_100_is_seen() -> None:
    runs = {"A": [captions(score) for score in SCORES]}
    figure = plot_columns(runs, {"Captions": ["digits"], "Attacks": ["attack"]}, {"A": 0})
    assert figure is not None
    captioned, attacks = figure.axes
    interval, point = captioned.get_lines()
    assert captioned.get_xlim()[0] < point.get_xdata()[0] < max(interval.get_xdata()) < captioned.get_xlim()[1]
    assert max(interval.get_xdata()) > 200 and attacks.get_xlim() == (-3.0, 103.0)


def test_bands_of_shares_alone_end_at_100() -> None:
    def top(figure: Any) -> float:
        return max(path.vertices[:, 1].max() for one in figure.axes[0].collections for path in one.get_paths())

    nearly = [two_tasks(0.99, 0.99, kept, 0.3) for kept in (0.6, 0.9, 0.99)]
    above = [captions(score) for score in SCORES]
    assert top(plot_steps({"A": nearly})) == 100.0 < 220.0 < top(plot_steps({"A": above}))
    sweep = plot_sweep({"A": {1.0: nearly}}, "p"), plot_sweep({"A": {1.0: above}}, "p")
    tops = [max(seg[:, 1].max() for seg in one.axes[0].collections[0].get_segments()) for one in sweep]
    assert tops[0] == pytest.approx(100.0) and tops[1] > 220.0 and sweep[1].axes[0].get_ylim()[1] > tops[1]
    (ax,) = plot_trade_off(nearly).axes
    assert max(seg[:, 1].max() for bars in ax.collections for seg in bars.get_segments()) <= 100.0


def test_the_curve_of_cider_has_its_whole_band() -> None:
    def curved(score: float) -> RunResults:
        line = {"event": "curve", "step": 0, "task": "digits", "optimizer_step": 1, "moment": "step", "set": "digits"}
        return RunResults([*captions(score).records, {**line, "kind": "task", "metric": "cider", "score": score}])

    figure = plot_safety_curve({"A": [curved(score) for score in SCORES]})
    assert figure is not None
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].max() > 220.0


def pointed(points: float) -> RunResults:
    return rescored(two_tasks(0.9, 0.8, 0.5, 0.4), ("digits",), figures={"points": points})


def test_points_are_printed_as_points(tmp_path: Any) -> None:
    columns = {"MME points": ["digits/points"], "Attacks": ["attack"]}
    cells = [cell("ref", seed, pointed(1200.0 + seed)) for seed in (0, 1)]
    cells += [cell("new", seed, pointed(1250.0 + 3 * seed)) for seed in (0, 1)]
    table = comparison_table(cells, "ref", columns)
    found = dict(zip(table.columns, table.rows[1], strict=True))
    assert found["MME points"].mean == 1251.5 and found["Attacks %"].mean == pytest.approx(40.0)
    assert found["Δ MME points"].mean == 51.0
    figure = plot_columns({"A": [pointed(1250.0)]}, columns, {"A": 0})
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["MME points", "Attacks, %"]
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1.03 * 1250)
    group = StudyGroup("g", "G", "", cells, "ref", columns=columns)
    assert (
        "percentage points (MME points: points): mean" in write_study_report([group], tmp_path)["markdown"].read_text()
    )
    with pytest.raises(ValueError, match="column 'Both' is the mean of points and shares"):
        comparison_table(cells, None, {"Both": ["digits/points", "attack"]})


def test_a_figure_that_one_seed_lacks_has_no_difference() -> None:
    """Its mean is a dash: a difference of fewer pairs than are told would be another comparison."""
    cells = [cell("ref", seed, pointed(1200.0 + seed)) for seed in (1, 2, 3)]
    cells += [cell("new", seed, pointed(1250.0 + 3 * seed)) for seed in (1, 2)]
    cells.append(cell("new", 3, two_tasks(0.9, 0.8, 0.5, 0.4)))
    table = comparison_table(cells, "ref", {"MME points": ["digits/points"]})
    found = dict(zip(table.columns, map(str, table.rows[1]), strict=True))
    assert found["Pairs"] == "3" and found["MME points"] == "–" == found["Δ MME points"] == found["p (MME points)"]
    assert found["Δ MASR"] == "+0.00 ± 0.00"
