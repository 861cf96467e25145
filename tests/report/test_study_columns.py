"""The picture of a study's columns holds the means of its tables."""

from __future__ import annotations

import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from support.study_cells import cell, two_tasks

from hpa_lightning.report.study_columns import plot_columns
from hpa_lightning.report.study_tables import comparison_table
from hpa_lightning.results.run_results import RunResults


def test_every_method_has_a_point_in_every_panel() -> None:
    columns = {"Attacks": ["attack"], "Both": ["attack", "harmless"]}
    runs = {
        "Three": [two_tasks(0.9, 0.8, 0.5, asr, 0.1) for asr in (0.2, 0.3, 0.7)],
        "One": [two_tasks(0.9, 0.8, 0.5, 0.4)],
    }
    figure = plot_columns(runs, columns, {"Three": 0, "One": 1})
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Attacks, %", "Both, %"]
    table = comparison_table(
        [cell(name, seed, run) for name, of in runs.items() for seed, run in enumerate(of)], None, columns
    )
    for number, ax in enumerate(figure.axes):
        points = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
        means = [row[len(row) - 2 + number].mean for row in table.rows]  # type: ignore[union-attr]
        assert [float(line.get_xdata()[0]) for line in points] == pytest.approx(means)
        assert [line.get_markerfacecolor() == "white" for line in points] == [False, True], "hollow below three seeds"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Three", "One"]
    assert plot_columns(runs, {}, {"Three": 0, "One": 1}) is None


def test_a_column_may_be_of_a_figure_beside_the_score() -> None:
    def scored(likelihood: object) -> RunResults:
        run = two_tasks(0.9, 0.8, 0.5, 0.4)
        for record in run.records:
            if record.get("set") == "attack":
                record["figures"] = {"by_likelihood": likelihood}
        return RunResults(run.records)

    run = scored(0.75)
    assert "attack/by_likelihood" in run.measures
    assert run.mean_score(["attack/by_likelihood"], 1) == 0.75
    columns = {"By likelihood": ["attack/by_likelihood"]}
    (row,) = comparison_table([cell("One", 0, run)], None, columns).rows
    assert row[-1].mean == 75.0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="'attack/by_length', which no run has"):
        comparison_table([cell("One", 0, run)], None, {"By length": ["attack/by_length"]})
    assert math.isnan(scored(None).mean_score(["attack/by_likelihood"], 1))
    with pytest.raises(ValueError, match="figure 'by_likelihood' of the set 'attack' is 'much'"):
        scored("much")


def test_titles_of_panels_do_not_touch() -> None:
    label = "A method with a name as long as those of a study's are"
    columns = {f"Over-refusal by likelihood {number}": ["attack"] for number in range(7)}
    figure = plot_columns({label: [two_tasks(0.9, 0.8, 0.5, 0.4)]}, columns, {label: 0})
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    titles = [text for ax in figure.axes for text in ax.findobj(Text) if text.get_text() == ax.get_title(loc="left")]
    boxes = [text.get_window_extent() for text in titles]
    assert len(boxes) == 7 and all(box.x1 < following.x0 for box, following in itertools.pairwise(boxes))
    assert all(figure.bbox.y0 < box.y0 and box.y1 < figure.bbox.y1 for box in boxes)
