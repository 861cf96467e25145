"""The report of a study: numbers checked by hand, correction for many tests, plots, Markdown and HTML."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from hpa_lightning.report.significance import holm, paired_difference
from hpa_lightning.report.study_plots import plot_against_performance, plot_sweep
from hpa_lightning.report.study_report import (
    StudyCell,
    StudyGroup,
    SweepAxis,
    comparison_table,
    learning_table,
    mean_matrix_table,
    origin_table,
    short_commits,
    step_table,
    write_study_report,
)
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import PValue, Table, format_cell

HASH = "0123456789abcdef0123456789abcdef01234567"
T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom


def results(
    matrix: Sequence[Sequence[float]],
    asr: Sequence[float],
    refusal: float = 0.0,
    commit: str | None = HASH,
    **run: object,
) -> RunResults:
    """A run with this score matrix, these attack success rates (the aligned model's first) and final over-refusal."""
    tasks = ["digits", "charts", "reading"][: len(matrix)]
    kinds = {**dict.fromkeys(tasks, "task"), "attack": "safety", "harmless": "over_refusal"}
    records: list[dict] = [
        {"event": "run", "method": "x", "tasks": tasks, "sets": [{"name": n, "kind": k} for n, k in kinds.items()]}
    ]
    records[0].update(run, commit=commit)
    for step, row in enumerate([[0.1] * len(tasks), *matrix], start=-1):
        if step + 1 >= len(asr):
            break  # the run stopped here
        for name, value in zip(kinds, [*row, asr[step + 1], refusal if step >= 0 else 0.0], strict=True):
            score = {"event": "score", "step": step, "set": name, "kind": kinds[name], "metric": "m", "score": value}
            records.append(score)
    return RunResults(records)


def cell(method: str, seed: int, run: RunResults, condition: str = "original data") -> StudyCell:
    return StudyCell(method, method.upper(), condition, seed, run)


def two_tasks(first: float, last: float, kept: float, asr: float, refusal: float = 0.0, **run: object) -> RunResults:
    return results([[first, 0.0], [kept, last]], [0.05, asr / 2, asr], refusal, **run)


@pytest.fixture(scope="module")
def study() -> list[StudyCell]:
    """A reference and two methods over three seeds; of `hpa` the first seed is missing, `odd` has one of its own."""
    ref = [two_tasks(1.0, 0.8, k, a) for k, a in ((0.5, 0.7), (0.4, 0.8), (0.3, 0.75))]
    ewc = [two_tasks(0.9, 0.8, k, a) for k, a in ((0.54, 0.6), (0.46, 0.7), (0.32, 0.65))]
    hpa = [two_tasks(0.8, 0.7, 0.7, a) for a in (0.2, 0.3)]
    cells = [cell("ref", seed, run) for seed, run in zip((1, 2, 3), ref, strict=True)]
    cells += [cell("ewc", seed, run) for seed, run in zip((1, 2, 3), ewc, strict=True)]
    cells += [cell("hpa", seed, run) for seed, run in zip((2, 3), hpa, strict=True)]
    return [*cells, cell("odd", 9, two_tasks(0.2, 0.2, 0.2, 0.0, refusal=0.5))]


def column(table: Table, name: str) -> dict[str, object]:
    place = list(table.columns).index(name)
    return {str(row[0]): row[place] for row in table.rows}


# -- tests of significance -------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # Ascending: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []
    without_a_test = holm([0.01, math.nan, 0.02])
    assert without_a_test[::2] == [0.02, 0.02] and math.isnan(without_a_test[1])


def test_paired_difference_by_hand() -> None:
    # Differences 2, 3, 1: mean 2, standard deviation 1. With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    found = paired_difference([3.0, 5.0, 4.0, math.nan], [1.0, 2.0, 3.0, 7.0])
    t = 2 * math.sqrt(3)
    assert found.pairs == 3 and found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert tuple(found.difference) == pytest.approx((2.0, T2 / math.sqrt(3)))
    assert str(paired_difference([1.0, 2.0, 3.0], [3.0, 5.0, 4.0]).difference) == "-2.00 ± 2.48"


@pytest.mark.parametrize(
    ("values", "reference", "text", "p"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], "+0.00 ± 0.00", "1.000"),
        ([0.1 + 0.2, 0.6 + 0.3], [0.3, 0.9], "+0.00 ± 0.00", "1.000"),  # equal but for rounding
        ([10.1, 10.2, 10.3], [5.1, 5.2, 5.3], "+5.00 ± 0.00", "–"),  # a t-test would divide by zero
        ([1.0], [2.0], "–", "–"),
        ([], [], "–", "–"),
    ],
)
def test_degenerate_differences(values: list[float], reference: list[float], text: str, p: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference(values, reference)
    assert (str(found.difference), format_cell(PValue(found.p))) == (text, p)


def test_p_values_are_written_with_three_decimals() -> None:
    assert [format_cell(PValue(p)) for p in (0.0123, 0.00099, 1.0, math.nan)] == ["0.012", "<0.001", "1.000", "–"]
    assert Table(("m", "p"), [("a", PValue(0.00012))]).csv() == "m,p\na,0.00012\n"
    with pytest.raises(ValueError, match="in pairs"):
        paired_difference([1.0], [1.0, 2.0])


# -- tables ----------------------------------------------------------------------------------------------------------


def test_comparison_by_hand(study: list[StudyCell]) -> None:
    table = comparison_table(study, "ref")
    assert [row[0] for row in table.rows] == ["REF", "EWC", "HPA", "ODD †"], "as given; odd refuses half"
    assert column(table, "Seeds") == {"REF": 3, "EWC": 3, "HPA": 2, "ODD †": 1}
    # AP of the reference: 65, 60, 55; BWT -50, -60, -70; MASR 70, 80, 75, before the first task 5.
    assert tuple(column(table, "AP %")["REF"]) == pytest.approx((60.0, T2 * 5 / math.sqrt(3)))
    assert tuple(column(table, "BWT %")["REF"]) == pytest.approx((-60.0, T2 * 10 / math.sqrt(3)))
    assert tuple(column(table, "MASR %")["REF"]) == pytest.approx((75.0, T2 * 5 / math.sqrt(3)))
    assert column(table, "DASR %")["REF"].mean == pytest.approx(70.0)
    assert column(table, "Learnt %")["REF"].mean == pytest.approx(90.0)
    assert column(table, "Learnt %")["HPA"].mean == pytest.approx(75.0)
    assert column(table, "Over-refusal %")["ODD †"] == (50.0, pytest.approx(math.nan, nan_ok=True))
    # EWC - REF per seed: AP 2, 3, 1; MASR -10 each. HPA - REF: AP 10, 15; BWT 50 and 60 (-10 - -60, -10 - -70).
    assert tuple(column(table, "Δ AP")["EWC"]) == pytest.approx((2.0, T2 / math.sqrt(3)))
    assert tuple(column(table, "Δ MASR")["EWC"]) == (pytest.approx(-10.0), 0.0)
    assert column(table, "Δ AP")["HPA"].mean == pytest.approx(12.5)
    assert column(table, "Δ BWT")["HPA"].mean == pytest.approx(55.0)
    assert column(table, "Pairs")["EWC"] == 3 and column(table, "Pairs")["HPA"] == 2
    text = table.text()
    assert "nan" not in text.lower()
    for name in ("Δ AP", "p (AP)", "Δ BWT", "p (BWT)", "Δ MASR", "p (MASR)"):
        assert format_cell(column(table, name)["REF"]) == format_cell(column(table, name)["ODD †"]) == "–"
    assert format_cell(column(table, "p (MASR)")["EWC"]) == "–", "all differences are equal"


def test_p_values_of_a_metric_are_corrected_over_the_methods(study: list[StudyCell]) -> None:
    # AP: t of EWC is 2 sqrt(3) (2 degrees of freedom), of HPA 12.5 / 2.5 = 5 (one: p = 1 - 2 atan(t) / pi).
    t = 2 * math.sqrt(3)
    raw = {"EWC": 1 - t / math.sqrt(t * t + 2), "HPA": 1 - 2 * math.atan(5) / math.pi}
    found = column(comparison_table(study, "ref"), "p (AP)")
    smaller, larger = sorted(raw, key=raw.get)
    assert found[smaller] == pytest.approx(2 * raw[smaller])
    assert found[larger] == pytest.approx(max(raw[larger], 2 * raw[smaller]))
    alone = column(comparison_table([c for c in study if c.method != "hpa"], "ref"), "p (AP)")
    assert alone["EWC"] == pytest.approx(raw["EWC"])


def test_a_reference_that_was_not_run_leaves_dashes(study: list[StudyCell]) -> None:
    table = comparison_table([c for c in study if c.method != "ref"], "ref")
    assert {format_cell(value) for value in column(table, "Δ AP").values()} == {"–"}
    assert set(column(table, "Pairs").values()) == {0}
    assert "Pairs" not in comparison_table(study, None).columns


def test_step_learning_and_matrix_tables(study: list[StudyCell]) -> None:
    steps = step_table(study)
    assert list(steps.columns) == ["MASR %", "aligned", "after digits", "after charts"]
    assert [item.mean for item in steps.rows[0][1:]] == pytest.approx([5.0, 37.5, 75.0])
    learning = learning_table(study)
    assert list(learning.columns) == ["Right after learning, %", "digits", "charts", "Mean"]
    assert [item.mean for item in learning.rows[1][1:]] == pytest.approx([90.0, 80.0, 85.0])
    matrix = mean_matrix_table([c.run for c in study if c.method == "ref"])
    assert [row[0] for row in matrix.rows] == ["aligned", "after digits", "after charts"]
    assert [[item.mean for item in row[1:]] for row in matrix.rows] == [
        pytest.approx(row) for row in ([10.0, 10.0], [100.0, 0.0], [40.0, 80.0])
    ]
    assert matrix.rows[2][1].half_width == pytest.approx(T2 * 10 / math.sqrt(3))


def test_two_references_have_a_table_each(study: list[StudyCell], tmp_path: Path) -> None:
    group = StudyGroup("g", "G", "", study, ["ref", "hpa"])
    tables = tables_of(write_study_report([group], tmp_path)["markdown"].read_text())
    assert [row[0] for row in tables[1][1:]] == ["EWC", "HPA", "ODD †"]
    assert [row[0] for row in tables[2][1:]] == ["REF", "EWC", "ODD †"]
    assert tables[1][2][2] == "+12.50 ± 31.77" and tables[2][1][2] == "-12.50 ± 31.77"


def test_the_commits_of_every_method() -> None:
    other = f"89abcdef{HASH}"
    cells = [cell("a", seed, two_tasks(1.0, 1.0, 1.0, 0.1, commit=other if seed == 3 else HASH)) for seed in (1, 2, 3)]
    cells += [cell(name, 1, two_tasks(1.0, 1.0, 1.0, 0.1)) for name in ("b", "c")]
    resumed = two_tasks(1.0, 1.0, 1.0, 0.1)
    resumed = RunResults([*resumed.records, *({"event": "resume", "step": 1, "commit": c} for c in (HASH, other))])
    rows = origin_table([*cells, cell("d", 4, resumed)]).rows
    assert rows == [
        ["0123456 (seeds 1 2); 89abcde (seed 3)", "A"],
        ["0123456 (seed 1)", "B; C"],
        ["0123456 then 89abcde (seed 4)", "D"],
    ]


def test_what_cannot_be_compared_is_refused(study: list[StudyCell], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 conditions"):
        comparison_table([*study, cell("ref", 1, study[0].run, "harmful")], "ref")
    with pytest.raises(ValueError, match=r"two runs of 'ref' with seed 1"):
        comparison_table([*study, study[0]], "ref")
    with pytest.raises(ValueError, match="2 streams of tasks"):
        comparison_table([*study, cell("new", 1, results([[1.0]], [0.0, 0.1]))], "ref")
    with pytest.raises(ValueError, match="distinct names"):
        write_study_report([StudyGroup("a", "A", "", study), StudyGroup("a", "B", "", study)], tmp_path)
    axis = SweepAxis("p", {"ref": 1.0, "ewc": 1.0})
    with pytest.raises(ValueError, match=r"two methods of the line 'sweep' have p = 1.0"):
        write_study_report([StudyGroup("a", "A", "", study, x=axis)], tmp_path)


def test_one_title_for_several_methods_is_told_apart(study: list[StudyCell]) -> None:
    same = [StudyCell(c.method, "HPA", c.condition, c.seed, c.run) for c in study]
    assert [row[0] for row in step_table(same).rows] == ["HPA (ref)", "HPA (ewc)", "HPA (hpa)", "HPA (odd)"]


def test_commits_are_cut_to_what_tells_them_apart() -> None:
    assert list(short_commits([HASH, f"{HASH}-dirty", HASH]).values()) == ["0123456", "0123456-dirty"]
    found = short_commits([HASH, "0123456f" + "0" * 32, "not recorded"])
    assert list(found.values()) == ["01234567", "0123456f", "not recorded"]


# -- plots -----------------------------------------------------------------------------------------------------------


def test_trade_off_has_one_labelled_point_for_each_method(study: list[StudyCell]) -> None:
    groups = {name: [c.run for c in study if c.method == name] for name in ("ref", "ewc", "hpa", "odd")}
    ax = plot_against_performance(groups, "MASR").axes[0]
    points = {bar.get_label(): bar.lines[0].get_xydata()[0] for bar in ax.containers}
    assert points["ref"] == pytest.approx([75.0, 60.0]) and points["odd"] == pytest.approx([0.0, 20.0])
    (reference,) = (bar for bar in ax.containers if bar.get_label() == "ref")
    horizontal = next(np.ptp(line.get_segments()[0], axis=0) for line in reference.lines[2])
    assert horizontal == pytest.approx([2 * T2 * 5 / math.sqrt(3), 0.0])
    assert [text.get_text() for text in ax.texts if text.get_text() in groups] != []
    assert {text.get_text() for text in ax.texts} == {
        "ref",
        "ewc",
        "hpa (n = 2)",
        "odd (n = 1)",
        "MASR of the aligned model",
    }
    hollow = {bar.get_label(): bar.lines[0].get_markerfacecolor() == "white" for bar in ax.containers}
    assert hollow == {"ref": False, "ewc": False, "hpa": True, "odd": True}
    assert all(not bar.lines[2] for bar in ax.containers if hollow[bar.get_label()]), "an interval of two seeds"
    assert plot_against_performance({"a": [results([[0.5]], [math.nan, math.nan])]}, "MASR") is None


def test_labels_of_twenty_methods_stay_apart_and_inside() -> None:
    rng = np.random.default_rng(0)
    groups = {
        f"Method number {n}": [two_tasks(0.9, 0.9, 0.4 + rng.uniform(0, 0.3), rng.uniform(0.3, 0.8)) for _ in range(3)]
        for n in range(20)
    }
    figure = plot_against_performance(groups, "MASR")
    (ax,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in ax.texts if text.get_text() in groups]
    inside = ax.get_window_extent()
    assert len(boxes) == 20
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1].padded(-1))]
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_families_share_a_line_and_a_name() -> None:
    groups = {f"A, {n}": [two_tasks(0.9, 0.9, 0.1 * n, 0.1 * n)] for n in (1, 2, 5)}
    groups["B"] = [two_tasks(0.9, 0.9, 0.9, 0.1)]
    figure = plot_against_performance(groups, "MASR", families={**dict.fromkeys(list(groups)[:3], "A"), "B": "B"})
    (ax,) = figure.axes
    assert sorted(text.get_text() for text in ax.texts) == ["A", "B", "MASR of the aligned model"]
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(line.get_xydata(), [[10.0, 50.0], [20.0, 55.0], [50.0, 70.0]])
    colours = [bar.lines[0].get_color() for bar in ax.containers]
    assert len(set(colours[:3])) == 1 and colours[3] != colours[0]


def test_sweep_draws_every_setting_and_lines_for_the_rest() -> None:
    runs = {value: [two_tasks(0.9, 0.9, 0.5 - value / 100, 0.5 - value / 50)] for value in (20.0, 5.0, 10.0)}
    upper, lower, _ = plot_sweep({"HPA": runs}, "retained, %", {"none": [two_tasks(0.9, 0.9, 0.3, 0.9)]}).axes
    (points,) = (bar.lines[0].get_xydata() for bar in lower.containers)
    np.testing.assert_allclose(points, [[5.0, 40.0], [10.0, 30.0], [20.0, 10.0]])
    assert upper.get_legend_handles_labels()[1] == ["none", "HPA"]
    assert upper.lines[-1].get_ydata()[0] == pytest.approx(60.0)


# -- the report ------------------------------------------------------------------------------------------------------


def tables_of(markdown: str) -> list[list[list[str]]]:
    """Every table of the text: rows of cells, the rule under the head checked and left out."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        rows = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert set(rows[1]) <= {"---", "---:"} and {len(row) for row in rows} == {len(rows[0])}
        found.append([rows[0], *rows[2:]])
    return found


@pytest.fixture(scope="module")
def report(study: list[StudyCell], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three groups: two conditions and unfinished runs, a sweep, and nothing finished at all."""
    half = results([[0.9, 0.0], [0.5, 0.9]], [0.05, 0.2])
    made = {"versions": {"device": "cpu"}, "threads": 2, "commit": f"{HASH}-dirty"}
    other = [cell(name, seed, two_tasks(0.9, 0.9, 0.1 * seed, 0.3, **made), "0.1 % | harm") for name in ("ref", "hpa")
             for seed in (1, 2)]  # fmt: skip
    main = StudyGroup(
        "Main",
        "All <methods>",
        "What `they` keep.\n\nA second paragraph.",
        [*study, cell("late", 4, half), *other],
        "ref",
        command="study report nano.yaml --output <folder>",
        missing=["L2P, seed 1"],
        matrices=["hpa"],
    )
    sweep = StudyGroup("sweep", "Sweep", "", study, None, SweepAxis("p, %", {"ref": 1.0, "ewc": 2.0}), curves=["ref"])
    nothing = StudyGroup("nothing", "Nothing yet", "", [], "ref", missing=["all of it"])
    return write_study_report([main, sweep, nothing], tmp_path_factory.mktemp("report"), "A study", "About it.")


def test_report_in_markdown(report: dict[str, Path], study: list[StudyCell]) -> None:
    text = report["markdown"].read_text()
    tables = tables_of(text)
    assert [len(table) - 1 for table in tables[:2]] == [4, 3], "all methods; those compared with the reference"
    assert tables[0][0] == ["Method", "Seeds", "Learnt %", "AP %", "BWT %", "MASR %", "DASR %", "Over-refusal %"]
    assert tables[0][1][:4] == ["REF", "3", "90.00 ± 0.00", "60.00 ± 12.42"]
    assert tables[1][1] == ["EWC", "3", "+2.00 ± 2.48", *tables[1][1][3:]]
    # Five tables each for the two conditions of the first group, three for the second.
    assert len(tables) == 5 + 5 + 3
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        *("# A study", "## What the numbers mean", "## All <methods>", "### All <methods>: original data"),
        *("### All <methods>: 0.1 % | harm", "## Sweep", "### Sweep: original data", "## Nothing yet"),
    ]
    links = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(links) == 4 + 4 + 4
    for alt, link in links:
        assert len(alt) > 40 and not Path(link).is_absolute()
        with Image.open(report["markdown"].parent / link) as image:
            assert min(image.size) > 400
    listed = "**Not run.** L2P, seed 1. LATE, original data, seed 4 (begun, 1 of 2 tasks scored)."
    assert text.count(listed) == 1, "below the first table of the group"
    assert text.count("    study report nano.yaml --output <folder>\n") == 10
    assert "Runs: 9, of 4 methods; seeds 1, 2, 3, 9. Commit: `0123456`. Run again, and tabulated, by" in text
    assert "seeds 1, 2. Commit: `0123456-dirty`. Device: cpu, threads 2. Run again" in text
    assert text.endswith("No run is finished.\n\n**Not run.** all of it.\n")
    assert "† refuses at least 50 % of the harmless inputs" in text and not re.search(r"\bnan\b", text.lower())


def test_report_in_html(report: dict[str, Path]) -> None:
    page = report["html"].read_text()
    assert page.count("<table") == 13 and page.count("<img") == 12
    for table in tables_of(report["markdown"].read_text()):
        for row in table[1:]:
            name, *values = (escape(value.replace("\\|", "|")) for value in row)
            assert f'<th scope="row">{name}</th>' + "".join(f"<td>{value}</td>" for value in values) in page
    assert re.findall(r'(?:src|href)\s*=\s*"((?!data:image/png;base64,)[^"]*)', page) == [] and "<script" not in page
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in re.findall(r"<img[^>]*>", page))
    assert "<p>What <code>they</code> keep.</p>\n<p>A second paragraph.</p>" in page
    assert "<methods>" not in page and escape("All <methods>: original data") in page
    assert "<strong>Not run.</strong> all of it." in page
    assert f"<code>{escape('study report nano.yaml --output <folder>')}</code>" in page


def test_many_methods_are_named_by_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(figure: object, path: Path) -> None:
        seen.append({text.get_text() for text in figure.axes[0].texts})
        path.write_bytes(b"PNG")

    monkeypatch.setattr("hpa_lightning.report.study_report.save_figure", keep)
    run = two_tasks(0.9, 0.9, 0.5, 0.2)
    grid = [StudyCell(f"m[p={n}]", f"Method, {n} %", "c", 1, run, "m") for n in range(24)]
    write_study_report([StudyGroup("g", "G", "", [*grid, cell("ref", 1, run, "c")])], tmp_path)
    assert {"Method", "REF"} <= seen[0] and not any("%" in name for name in seen[0])
    write_study_report([StudyGroup("g", "G", "", grid)], tmp_path)
    assert "Method, 3 % (n = 1)" in seen[3]


def test_unfinished_runs_do_not_count(study: list[StudyCell]) -> None:
    assert study[0].finished
    assert not cell("late", 4, results([[0.9, 0.0], [0.5, 0.9]], [0.05, 0.2])).finished
    assert not cell("late", 4, results([[0.9, 0.0], [0.5, 0.9]], [0.05, 0.2, math.nan])).finished


def test_more_methods_than_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpa_lightning.report.study_report.save_figure", lambda figure, path: path.write_bytes(b"PNG"))
    cells = [cell(f"m{n}", 1, two_tasks(0.9, 0.9, 0.5, 0.1 * (n % 9))) for n in range(11)]
    text = write_study_report([StudyGroup("g", "G", "", cells, "m10")], tmp_path)["markdown"].read_text()
    assert "3 more methods stand in the tables" in text
    (alt,) = re.findall(r"!\[(Lines of [^\]]+)\]", text)
    assert "M10" in alt and "M6" in alt and "M7 " not in alt, "the reference is one of the eight"
