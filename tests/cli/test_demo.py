"""`hpa-lightning demo`: every method runs, and one table comes out; other settings in the same folder are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.forked_programs import fork_programs_of

from hpa_lightning.cli import main
from hpa_lightning.report import method_table
from hpa_lightning.study import demo_study, runner
from hpa_lightning.study.store import Store

SMALL = {"steps": 2, "train_size": 16, "test_size": 4, "calibration_size": 8, "task_order": ["charts", "digits"]}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The demo's study with few samples."""
    fork_programs_of(runner, monkeypatch)
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
