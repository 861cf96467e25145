"""The demo: every method that it names runs, and one table comes out; an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpa_lightning.cli import main
from hpa_lightning.report import method_table
from hpa_lightning.study import demo_study
from hpa_lightning.study.grid import read_study
from hpa_lightning.study.store import Store

SMALL = {"steps": 2, "train_size": 16, "test_size": 4, "calibration_size": 8, "task_order": ["charts", "digits"]}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The demo's study with few samples."""
    content = yaml.safe_load(demo_study.STUDY.read_text())
    content["base"]["data"]["init_args"] |= SMALL
    for method in content["methods"].values():
        for callback in method.get("callbacks", ()):
            if "calibration" in callback.get("init_args", {}):
                callback["init_args"]["calibration"] = {"safety_samples": 8, "task_samples": 8}
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(demo_study, "STUDY", path)
    return content


def test_demo(small: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    methods = [name for name in small["methods"] if not name.endswith("-paper")]
    main(["demo", "--output", str(output), "--seeds", "7"])
    lines = capsys.readouterr().out.splitlines()
    cells = demo_study.demo_study([7], methods).cells()
    runs = [Store(output).finished(cell).run for cell in cells]
    assert [run.method for run in runs] == [small["methods"][name]["title"] for name in methods]
    assert all(run.seed == 7 and run.steps == [-1, 0, 1] for run in runs)
    table = method_table(runs).text().splitlines()
    assert lines[lines.index(table[0]) :][: len(table)] == table
    assert not runs[0].events("retention") and runs[2].events("retention")
    assert (output / "report" / "report.html").is_file()
    # The same command again runs nothing and shows the same.
    main(["demo", "--output", str(output), "--seeds", "7"])
    again = capsys.readouterr().out
    assert "4 finished; 0 to run" in again and table[-1] in again


def test_other_settings_in_the_same_folder_are_refused(
    small: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "demo"
    main(["demo", "--output", str(output), "--seeds", "7", "--methods", "sequential"])
    small["base"]["data"]["init_args"]["steps"] = 3
    demo_study.STUDY.write_text(yaml.safe_dump(small))
    with pytest.raises(SystemExit, match=r"sequential/seed_7.*configuration"):
        main(["demo", "--output", str(output), "--seeds", "7", "--methods", "sequential"])


def test_the_demo_runs_what_the_archived_study_ran() -> None:
    """But for what is kept of a run."""

    def calibrated(cell) -> list[dict]:
        return cell.config["trainer"]["callbacks"][3 if "six" in cell.condition else 2 :]

    study = read_study(Path(__file__).parents[2] / "studies" / "nano.yaml")
    archived = {cell.method: cell for cell in study.cells() if cell.condition == "clean" and cell.seed == 101}
    names = {
        "sequential": "sequential",
        "in-training": "hpa-in[p=72.0]",
        "post-training": "hpa-post[p_min=7.0, p_max=18.0]",
        "null-space": "null-space[energy=0.7]",
    }
    for cell in demo_study.demo_study([101], list(names)).cells():
        other = archived[names[cell.method]]
        mine, theirs = calibrated(cell), calibrated(other)
        for callback in theirs:
            callback.get("init_args", {}).pop("memory_weight", None)  # its default
        assert mine == theirs
        assert cell.config["data"] == other.config["data"] and cell.config["model"] == other.config["model"]
