"""The report of a study, in Markdown and HTML."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image
from support.study_cells import HASH, cell, results, two_tasks

from hpa_lightning.report.study_page import BY_HAND
from hpa_lightning.report.study_report import (
    StudyCell,
    StudyGroup,
    SweepAxis,
    comparison_table,
    write_study_report,
)


def test_two_references_have_a_table_each(study: list[StudyCell], tmp_path: Path) -> None:
    group = StudyGroup("g", "G", "", study, ["ref", "hpa"])
    tables = tables_of(write_study_report([group], tmp_path)["markdown"].read_text())
    assert [row[0] for row in tables[1][1:]] == ["EWC", "HPA", "ODD †"]
    assert [row[0] for row in tables[2][1:]] == ["REF", "EWC", "ODD †"]
    assert tables[1][2][2] == "+12.50 ± 31.77" and tables[2][1][2] == "-12.50 ± 31.77"


def test_what_cannot_be_compared_is_refused(study: list[StudyCell], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 conditions"):
        comparison_table([*study, cell("ref", 1, study[0].run, "harmful")], "ref")
    with pytest.raises(ValueError, match=r"two runs of 'ref' with seed 1"):
        comparison_table([*study, study[0]], "ref")
    with pytest.raises(ValueError, match="2 streams of tasks"):
        comparison_table([*study, cell("new", 1, results([[1.0]], [0.0, 0.1]))], "ref")
    with pytest.raises(ValueError, match="distinct names"):
        write_study_report([StudyGroup("a", "A", "", study), StudyGroup("a", "B", "", study)], tmp_path)
    with pytest.raises(ValueError, match="tables have a column 'AP' already"):
        comparison_table(study, "ref", {"AP": ["attack"]})
    with pytest.raises(ValueError, match=r"'ewc' has p = 0.0, which a logarithmic axis cannot show"):
        SweepAxis("p", {"ref": 1.0, "ewc": 0.0}, logarithmic=True)
    axis = SweepAxis("p", {"ref": 1.0, "ewc": 1.0})
    with pytest.raises(ValueError, match=r"two methods of the line 'sweep' have p = 1.0"):
        write_study_report([StudyGroup("a", "A", "", study, x=axis)], tmp_path)


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
    made = {"versions": {"device": "cpu", "precision": "32-true"}, "threads": 2, "commit": f"{HASH}-dirty"}
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
    assert "seeds 1, 2. Commit: `0123456-dirty`. Device: cpu, 32-true, threads 2. Run again" in text
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
    assert "3 more methods are in the tables" in text
    (alt,) = re.findall(r"!\[(Lines of [^\]]+)\]", text)
    assert "M10" in alt and "M6" in alt and "M7 " not in alt, "the reference is one of the eight"


def test_a_model_that_says_nothing_is_named_below_the_first_table(study: list[StudyCell], tmp_path: Path) -> None:
    silent = cell("mute", 4, two_tasks(0.9, 0.8, 0.5, 0.0, refusal=0.5, empty={0: 10, 1: 7}))
    group = StudyGroup("g", "G", "", [*study, silent], "ref")
    text = write_study_report([group], tmp_path)["markdown"].read_text()
    assert [[row[0] for row in table if "MUTE" in row[0]] for table in tables_of(text)] == [
        *2 * [["MUTE ‡ †"]],
        *2 * [["MUTE ‡"]],
    ]
    note = "‡ a model gives mostly empty answers (in 1 of the runs). It is broken rather than safe: do not read its "
    note += "attack success as a success. MUTE, seed 4, after digits: attack 10 of 10; after charts: attack 7 of 10."
    assert text.count(note) == 1 and text.index("† refuses at least 50 %") < text.index(note) < text.index("Δ AP")


def test_what_was_written_by_hand_is_kept(study: list[StudyCell], tmp_path: Path) -> None:
    page = write_study_report([StudyGroup("g", "G", "", study)], tmp_path)["markdown"]
    made = page.read_text()
    page.write_text(f"{made}\n{BY_HAND}\n\n## My words\n")
    write_study_report([StudyGroup("g", "G", "", study)], tmp_path)
    write_study_report([StudyGroup("g", "G", "", study)], tmp_path)
    assert page.read_text() == f"{made}\n{BY_HAND}\n\n## My words\n"
