"""`hpa-lightning data filter` as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.instruction_files import llava_row, write_rows
from support.text_classifiers import write_classifier

from hpa_lightning.cli import data_filter, main
from hpa_lightning.filtering import FilterRule, TextClassifier


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [llava_row(n, f"What is shown {n}?", "Napalm." if n % 3 == 0 else "A lake.", None) for n in range(9)]
    write_rows(tmp_path / "train.json", rows)
    (tmp_path / "weapons.txt").write_text("napalm\npipe bomb\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_and_yaml_do_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "filter", "--input", "train.json", "--output", "one", "--phrases", "weapons.txt"])
    told = capsys.readouterr().out
    assert (
        "9 records: 6 kept, 3 dropped" in told and "one/kept.json: what is kept; image paths in it start from ." in told
    )
    part = {"class_path": "PhraseFilter", "init_args": {"files": ["weapons.txt"]}}
    options = {"input": "train.json", "output": "two", "parts": {"phrases": part}}
    (folder / "filter.yaml").write_text(yaml.safe_dump(options))
    main(["data", "filter", "--config", "filter.yaml"])
    for file in (folder / "one").iterdir():
        assert file.read_bytes() == (folder / "two" / file.name).read_bytes(), file.name


def test_a_classifier_from_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_classifier(folder / "model", "distilbert")
    given = ["--input", "train.json", "--classifier", model, "--labels", "toxic", "threat", "--threshold", "0.3"]
    main(["data", "filter", *given, "--limit", "4", "--device", "cpu"])
    told = capsys.readouterr().out
    assert "4 records: " in told and "train.json[0], classifier: harmful; t" in told
    assert not (folder / "train").exists() and len(list(folder.iterdir())) == 3


def test_the_output_is_a_tasks_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "filter", "--input", "train.json", "--output", "out", "--phrases", "weapons.txt"])
    task = {"name": "instructions", "train": "out/kept.json", "test": "out/dropped.json", "image_folder": "."}
    data = {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": {"tasks": [task]}}
    (folder / "fit.yaml").write_text(yaml.safe_dump({"data": data}))
    main(["data", "check", "--config", "fit.yaml", "--no-tokens"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("task instructions, train")]
    assert line.split()[3] == "6" and line.split()[-2:] == ["0", "0"], line  # records, problems, warnings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: input"),
        (["--input", "train.json"], "expected --output FOLDER, or --limit N"),
        (["--input", "train.json", "--output", "a", "--limit", "2"], "expected --output FOLDER, or --limit N"),
        (["--input", "train.json", "--limit", "2"], "no part of the filter is given"),
        (["--input", "train.json", "--limit", "2", "--classifier", "x"], "--classifier and --labels belong together"),
        (
            ["--input", "train.json", "--limit", "2", "--image-labels", "x"],
            "--image-labels belong together",
        ),
        (["--input", "train.json", "--limit", "2", "--guard-categories", "S1"], "belong to --guard"),
        (["--input", "train.json", "--limit", "2", "--threshold", "0.9"], "--threshold belongs to --classifier"),
        (
            ["--input", "train.json", "--limit", "2", "--classifier", "x", "--labels", "y", "--image-threshold", "7"],
            "--image-threshold belongs to --image-classifier",
        ),
        (["--input", "no.json", "--limit", "2", "--phrases", "weapons.txt"], "there is no data file 'no.json'"),
        (
            ["--input", "train.json", "--limit", "2", "--phrases", "no.txt"],
            "'phrases': PhraseFilter: there is no file",
        ),
        (["--input", "train.json", "--limit", "2", "--phrases", "weapons.txt", "--rule", "votes"], "votes is None"),
        (["--input", "train.json", "--limit", "2", "--refusals", "mine"], "Unknown refusal rules 'mine'"),
        (["--input", "train.json", "--limt", "2"], "no option --limt; did you mean --limit?"),
    ],
)
def test_mistakes_in_one_line(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "filter", *arguments])
    told = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and said in told[-1] and told[-1].startswith("hpa-lightning data")


def test_a_part_is_given_once(folder: Path) -> None:
    (folder / "filter.yaml").write_text(yaml.safe_dump({"parts": {"phrases": {"class_path": "PhraseFilter"}}}))
    with pytest.raises(SystemExit, match="the part 'phrases' is in the YAML file and is given by an option"):
        given = ["--config", "filter.yaml", "--input", "train.json", "--limit", "2", "--phrases", "weapons.txt"]
        main(["data", "filter", *given])


def test_defaults_are_those_of_the_classes() -> None:
    options = data_filter.parser().parse_args(["--input", "a"])
    rule = FilterRule()
    names = ("rule", "votes", "no_verdict", "unreadable", "bad_records")
    assert [getattr(options, name) for name in names] == [getattr(rule, name) for name in names]
    assert TextClassifier("a", ["x"]).labels["x"] == options.threshold == options.image_threshold


def test_print_config_is_read_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_filter.parser().parse_args(["--input", "train.json", "--phrases", "weapons.txt", "--print_config"])
    (folder / "filter.yaml").write_text(capsys.readouterr().out)
    main(["data", "filter", "--config", "filter.yaml", "--output", "out"])
    assert json.loads((folder / "out" / "counts.json").read_text())["dropped"] == 3
