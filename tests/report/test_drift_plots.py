"""The picture of the drift, and its place on the page."""

from __future__ import annotations

from support.drifting_runs import drifting_run

from hpa_lightning.report.drift_plots import plot_drift
from hpa_lightning.report.run_page import render_page


def test_page_and_picture() -> None:
    runs = [drifting_run(seed) for seed in range(3)]
    assert "Rank correlation of drift with the rise of attack success, over all steps of 3 runs" in render_page(
        runs, {}
    )
    assert "Rank correlation" not in render_page(runs[:2], {})
    figure = plot_drift(runs[0])
    assert figure is not None and [ax.get_title(loc="left") for ax in figure.axes] == [
        "Hidden states on harmful prompts", "Weights"
    ]  # fmt: skip
    assert len(figure.axes[0].get_lines()) == 3
