"""What stands on a study's page: true commands, columns of each condition, methods of one title."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.cli import main
from hpa_lightning.cli.study import _windows_command, parser
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.study import Store, read_study
from hpa_lightning.study.reporting import _command

TASK, WORDS = {"name": "a", "kind": "task"}, {"name": "words", "kind": "safety"}


def study_file(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "base": {"seed": "${seed}"},
        "methods": {"one": {"title": "Same", "config": {"x": 1}}, "two": {"title": "Same", "config": {"x": 2}}},
        "conditions": {"spoken": {}, "shown": {"y": 1}},
        "groups": {"g": {"title": "G", "methods": ["one", "two"], "seeds": [1, 2, 3], "reference": "one"}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def finish(path: Path, sets: dict[str, list[dict[str, str]]]) -> None:
    """All cells of the conditions that are named, with their sets."""
    store = Store(path.parent / "store")
    for cell in read_study(path).cells():
        if cell.condition in sets:
            writer = ResultWriter(store.folder(cell) / "results.jsonl")
            writer.write(
                {"event": "run", "method": "m", "seed": cell.seed, "tasks": ["a"], "sets": sets[cell.condition]}
            )
            for item in sets[cell.condition]:
                score = {"set": item["name"], "kind": item["kind"], "metric": "m", "score": 0.1 * cell.seed}
                writer.write({"event": "score", "step": 0, "after": "a", **score})
            store.finish(cell, 1.0, 1)


def page(path: Path) -> str:
    arguments = ["--store", str(path.parent / "store"), "--output", str(path.parent / "page")]
    main(["study", "report", str(path), *arguments])
    return (path.parent / "page" / "results.md").read_text()


def test_the_commands_are_those_that_make_the_page_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    usual = _command(Store("runs/study"), "some where/study.yaml", "a group", "docs")
    assert usual.splitlines() == [
        "hpa-lightning study run 'some where/study.yaml' --groups 'a group'",
        "hpa-lightning study report 'some where/study.yaml' --groups 'a group' --output docs",
    ]
    (tmp_path / "an archive.jsonl").touch()
    run, report = _command(Store("a store", ["an archive.jsonl"]), "study.yaml", "g", "my page").splitlines()
    assert run == "hpa-lightning study run study.yaml --groups g --store 'a store'"
    options = parser().parse_args(shlex.split(report)[2:])
    assert (str(options.store), [str(path) for path in options.archive]) == ("a store", ["an archive.jsonl"])
    assert (options.groups, str(options.output)) == (["g"], "my page")


def test_the_command_of_windows_makes_windows() -> None:
    given = ["windows", "a fit.yaml", "--size", "3", "--seeds", "1", "2", "--store", "s", "--blocks", "6"]
    options = parser().parse_args([*given, "--imports", "mine", "--output", "a page"])
    command = _windows_command(options)
    assert command.startswith("hpa-lightning study windows 'a fit.yaml' --store s --size 3")
    again = parser().parse_args(shlex.split(command)[2:])
    assert vars(again) == vars(options)


def test_windows_write_their_command_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study_file(tmp_path)
    monkeypatch.setattr("hpa_lightning.cli.study._windows", lambda options: read_study(path))
    monkeypatch.setattr("hpa_lightning.study.run_cells", lambda cells, store, jobs, packages: [])
    finish(path, {"spoken": [TASK, WORDS]})
    main(["study", "windows", "fit.yaml", "--store", str(tmp_path / "store"), "--output", str(tmp_path / "page")])
    text = (tmp_path / "page" / "results.md").read_text()
    assert "hpa-lightning study windows fit.yaml --store" in text and "study run" not in text


def test_an_optional_column_is_left_out_of_the_condition_that_lacks_it(tmp_path: Path) -> None:
    path = study_file(tmp_path, columns={"In words": {"sets": ["words"], "optional": True}})
    finish(path, {"spoken": [TASK, WORDS], "shown": [TASK]})
    with pytest.warns(
        UserWarning, match=r"group 'g': Left out of shown: In words, since no run of shown has .* words\."
    ):
        text = page(path)
    headers = [line for line in text.splitlines() if line.startswith("| Method | Seeds")]
    assert ["In words %" in header for header in headers] == [True, False]
    assert text.count("Left out of shown: In words") == 1


def test_methods_of_one_title_are_told_apart_where_they_are_not_run(tmp_path: Path) -> None:
    path = study_file(tmp_path, conditions={"spoken": {}})
    finish(path, {})
    text = page(path)
    assert "spoken, seeds 1 2 3 (6 runs): Same (one); Same (two)" in text
