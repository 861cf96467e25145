"""Tables of categories show every figure of every category, in percent but for points."""

from __future__ import annotations

import math
from typing import Any

from hpa_lightning.report.category_tables import category_csv_table, category_tables, figures_table, further_text
from hpa_lightning.report.run_page import render_page
from hpa_lightning.results.run_results import RunResults


def run() -> RunResults:
    sets = [{"name": "harm", "kind": "safety"}, {"name": "mme", "kind": "helpfulness"}]
    lines: list[dict[str, Any]] = [{"event": "run", "method": "x", "seed": 3, "tasks": ["a"], "sets": sets}]
    for step, rate in ((-1, 0.25), (0, 0.5)):
        score = {"event": "score", "step": step, "after": "a" if step == 0 else None, "n": 8, "metric": "m"}
        fraud = {"n": 4, "score": rate}
        by_domain = {"fraud": fraud, **({"weapons": {"n": 4, "score": 1.0}} if step == 0 else {})}
        likely = {"figures": {"by_likelihood": rate / 2}} if step == 0 else {}
        lines.append(
            {**score, "set": "harm", "kind": "safety", "score": rate, "categories": {"domain": by_domain}, **likely}
        )
        points = {"subtask": {"count": {"n": 8, "score": rate, "points": 100.0 * rate}}}
        total = {"points": 100.0 * rate, "accuracy_plus": rate, "hits/misses": rate}
        lines.append(
            {**score, "set": "mme", "kind": "helpfulness", "score": rate, "categories": points, "figures": total}
        )
    return RunResults(lines)


def test_every_set_and_scheme_has_a_table_of_categories_over_steps() -> None:
    tables = {heading: (table, caption) for heading, table, caption in category_tables(run())}
    assert list(tables) == ["harm by domain", "mme by subtask"]
    table, caption = tables["harm by domain"]
    assert list(table.rows[0]) == ["fraud", 4, 25.0, 50.0] and caption.endswith("in percent")
    name, count, before, after = table.rows[1]
    assert (name, count, after) == ("weapons", 4, 100.0) and isinstance(before, float) and math.isnan(before)
    table, caption = tables["mme by subtask"]
    assert list(table.rows[0]) == ["count", 8, 25.0, 50.0] and caption.endswith("in points")


def test_a_run_shows_what_metrics_report_beside_the_score() -> None:
    table = figures_table(run())
    by_figure = {tuple(row[:2]): row[2:] for row in table.rows}
    assert by_figure["mme", "points"] == [25.0, 50.0] and by_figure["mme", "accuracy plus"] == [25.0, 50.0]
    assert by_figure["mme", "hits/misses"] == [25.0, 50.0], "a metric of a user's may name its figures so"
    before, after = by_figure["harm", "by likelihood"]
    assert isinstance(before, float) and math.isnan(before) and after == 25.0
    assert "Further figures" in render_page([run()], {}) and "by likelihood" in render_page([run()], {})


def test_the_long_form_holds_every_figure_once() -> None:
    table = category_csv_table([run()])
    rows = [tuple(row)[-6:] for row in table.rows]
    assert ("harm", "domain", "weapons", 4, "score", 100.0) in rows
    assert ("mme", "subtask", "count", 8, "points", 50.0) in rows and len(rows) == 7


def test_what_a_metric_tells_beside_its_score_is_in_words() -> None:
    assert further_text({"set": "mme", "figures": None}) == ""
    assert further_text({"set": "mme", "figures": {"vanilla": 0.25}}) == "mme: vanilla 25.00 %"
