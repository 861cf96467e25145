from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpa_lightning.cli import main
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.study import Cell, Store, read_study
from hpa_lightning.study.reporting import _command, _lines, study_cell

SETS = [{"name": "a", "kind": "task"}, {"name": "b", "kind": "task"}, {"name": "harm", "kind": "safety"}]


def study_file(folder: Path) -> Path:
    study = {
        "title": "Retention",
        "base": {"seed": "${seed}"},
        "methods": {
            "plain": {"title": "Plain"},
            "kept": {"title": "Kept ${p} %", "grid": {"p": [10, 20]}, "config": {"p": "${p}"}},
        },
        "groups": {
            "sweep": {
                "title": "How much to keep",
                "text": "Two shares.",
                "methods": ["plain", "kept"],
                "seeds": [1, 2, 3],
                "reference": "kept[p=10]",
                "x": {"setting": "p", "label": "kept columns (%)"},
                "curves": ["plain"],
                "matrices": ["plain"],
            }
        },
    }
    path = folder / "retention.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def finish(store: Store, path: Path, leave_out: list[str], sets: list[dict[str, str]] = SETS) -> None:
    for cell in read_study(path).cells():
        if cell.key in leave_out:
            continue
        writer = ResultWriter(store.folder(cell) / "results.jsonl")
        run = {"event": "run", "method": cell.title, "seed": cell.seed, "tasks": ["a", "b"], "sets": sets}
        writer.write({**run, "commit": "0123456789abcdef", "versions": {"device": "cpu"}})
        base = 0.5 + 0.1 * cell.seed + cell.values.get("p", 0) / 1000
        for step, after in ((-1, None), (0, "a"), (1, "b")):
            for number, entry in enumerate(sets):
                score = base / (1 + number + max(step, 0))
                values = {"metric": "m", "score": score, "n": 10, "set": entry["name"], "kind": entry["kind"]}
                writer.write({"event": "score", "step": step, "after": after, **values})
        store.finish(cell, 12.0, 1)


def test_report_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = study_file(tmp_path), Store(tmp_path / "store")
    finish(store, path, leave_out=["default/kept-p-20/seed_2", "default/kept-p-20/seed_3"])
    main(["study", "report", str(path), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "report")])
    assert "results.html" in capsys.readouterr().out
    page = (tmp_path / "report" / "results.md").read_text()
    assert "# Retention" in page and "How much to keep" in page and "Two shares." in page
    # AP of seed s is the mean of base / 2 and base / 3 with base 0.5 + 0.1 s: mean over seeds 0.7 * 5 / 12.
    assert "| Plain | 3 | 46.67 ± 16.56 | 29.17 ± 10.35 |" in page
    assert "default, seeds 2 3 (2 runs): Kept 20 %" in page, "what is missing is listed"
    assert f"hpa-lightning study run {path} --groups sweep" in page and "0123456" in page
    assert list((tmp_path / "report" / "figures").glob("*.png"))
    assert "Kept 10 %" in (tmp_path / "report" / "results.html").read_text()


def test_further_columns_and_each_set_by_itself(tmp_path: Path) -> None:
    """Attack success on text alone and with pictures stand apart, with differences and a picture of their own."""
    path = study_file(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["columns"] = {"Text ASR": ["spoken"], "Both": ["spoken", "shown"]}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    store = Store(tmp_path / "store")
    sets = [{"name": "a", "kind": "task"}, {"name": "b", "kind": "task"}, {"name": "spoken", "kind": "safety"}]
    sets += [{"name": "shown", "kind": "safety"}, {"name": "careful", "kind": "over_refusal"}]
    finish(store, path, [], sets)
    main(["study", "report", str(path), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "report")])
    page = (tmp_path / "report" / "results.md").read_text()
    # After the last task the set of number k has base / (2 + k); the base is 0.6, 0.7 and 0.8.
    header = next(line for line in page.splitlines() if line.startswith("| Method | Seeds"))
    row = next(line for line in page.splitlines() if line.startswith("| Plain | 3"))
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["Text ASR %"].startswith(f"{70 / 4:.2f} ± ")
    assert cells["Both %"].startswith(f"{70 * (1 / 4 + 1 / 5) / 2:.2f} ± ")
    differences = next(line for line in page.splitlines() if "Δ Text ASR" in line)
    assert differences.strip("| ").split(" | ")[-4:] == ["Δ Text ASR", "p (Text ASR)", "Δ Both", "p (Both)"]
    by_set = next(line for line in page.splitlines() if line.startswith("| After the last task, %"))
    assert "ASR spoken" in by_set and "over-refusal careful" in by_set
    assert list((tmp_path / "report" / "figures").glob("*-columns.png"))

    content["columns"] = {"Text ASR": ["spokn"]}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(SystemExit, match=r"column 'Text ASR' is of the evaluation set 'spokn', which no run has"):
        main(["study", "report", str(path), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "report")])


def test_an_optional_column_that_no_run_can_fill_is_left_out_and_said_so(tmp_path: Path) -> None:
    path = study_file(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["columns"] = {
        "Text ASR": ["spoken"],
        "Careful": {"sets": ["careful"], "optional": True},
        "Spoken again": {"sets": ["spoken"], "optional": True},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    names = [("a", "task"), ("b", "task"), ("spoken", "safety"), ("shown", "safety")]
    finish(Store(tmp_path / "store"), path, [], [{"name": name, "kind": kind} for name, kind in names])
    with pytest.warns(UserWarning, match=r"Left out: Careful, since no run has the evaluation sets careful\."):
        main(["study", "report", str(path), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "report")])
    page = (tmp_path / "report" / "results.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| Method | Seeds"))
    assert "Text ASR %" in header and "Spoken again %" in header and "Careful %" not in header
    assert page.count("Left out: Careful") == 1

    for wrong, message in (
        ({"sets": "careful"}, r"columns: C is 'careful'; expected a list of evaluation sets"),
        ({"optional": True}, r"columns: C: \['sets'\] missing"),
        ({"sets": ["careful"], "optional": 1}, r"columns: C: optional is 1; expected true or false"),
    ):
        content["columns"] = {"C": wrong}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(ValueError, match=message):
            read_study(path)


def test_cells_know_their_threads_from_the_store(tmp_path: Path) -> None:
    path, store = study_file(tmp_path), Store(tmp_path / "store")
    finish(store, path, [])
    cell = read_study(path).cells()[0]
    finished = store.finished(cell)
    assert finished is not None and study_cell(cell, finished).threads == 1


def test_the_command_names_the_archives(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    archives = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    run, report = _command(Store(tmp_path / "store", archives), "study.yaml", "g", "docs").splitlines()
    of = f"study.yaml --groups g --store {tmp_path / 'store'}"
    assert run == f"hpa-lightning study run {of}", "what is archived is run again too"
    archived = f"--archive {archives[0]} {archives[1]} --output docs"
    assert report == f"hpa-lightning study report {of} {archived}"


def test_lines_of_a_grid_are_named_by_what_their_titles_share() -> None:
    values = [{"p": 1, "q": "x"}, {"p": 2, "q": "x"}, {"p": 1, "q": "y"}]
    titles = [f"Two, {one['p']} % of {one['q']}" for one in values]
    cells = [Cell(f"two[{i}]", titles[i], "clean", 1, {}, one) for i, one in enumerate(values)]
    assert _lines(cells, "p") == {
        "two[0]": "Two, … % of x",
        "two[1]": "Two, … % of x",
        "two[2]": "Two, 1 % of y",
    }


def test_lines_whose_titles_are_alike_are_named_by_their_settings() -> None:
    values = [{"p": 1, "q": "x"}, {"p": 2, "q": "x"}, {"p": 1, "q": "y"}]
    cells = [Cell(f"two[{i}]", "Two", "clean", 1, {}, one) for i, one in enumerate(values)]
    assert list(_lines(cells, "p").values()) == ["two, q=x", "two, q=x", "two, q=y"]


def test_unknown_group_and_missing_output(tmp_path: Path) -> None:
    path = study_file(tmp_path)
    with pytest.raises(SystemExit, match="no group 'nothing'"):
        main(["study", "report", str(path), "--output", str(tmp_path / "report"), "--groups", "nothing"])
    with pytest.raises(SystemExit):
        main(["study", "report", str(path)])
