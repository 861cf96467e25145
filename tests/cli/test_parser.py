"""Every command's parser: help without PyTorch, YAML of options and back, mistakes in one line, completion."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.command_errors import told

from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.cli import data as data_command
from hpa_lightning.cli import fuse as fuse_command
from hpa_lightning.cli.app import COMMANDS, LIGHTNING
from hpa_lightning.cli.parser import what_was_said
from hpa_lightning.data.benchmarks import BENCHMARKS
from hpa_lightning.functional.hpa import SALIENCIES, UNITS

OWN = [name for name in COMMANDS if name not in LIGHTNING]

HEAVY = ("torch", "lightning", "transformers", "peft", "matplotlib", "sklearn", "scipy", "numpy", "PIL", "torchmetrics")

#: The least that a command needs beside its options.
NEEDED = {
    "answers": ["run"],
    "benchmark": ["smol", "--output", "a"],
    "data": [],
    "doctor": [],
    "drift": ["a", "b", "--output", "c"],
    "demo": [],
    "export": ["a.ckpt", "out"],
    "fuse": ["--before", "a", "--after", "b", "--output", "c"],
    "merge": ["--task", "a", "--safety", "b", "--output", "c"],
    "judge": ["run"],
    "rate": ["run"],
    "report": ["run", "other"],
    "study": ["run", "study.yaml"],
}


def parser_of(command: str) -> Any:
    return import_module(f"hpa_lightning.cli.{COMMANDS[command][0]}").parser()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in OWN), ["reprot"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """An import of PyTorch alone takes longer than anyone waits for help."""
    code = (
        "import sys\nfrom hpa_lightning.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded []", done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("command", OWN)
def test_print_config_writes_what_config_reads(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(command)
    with pytest.raises(SystemExit) as done:
        parser.parse_args([*NEEDED[command], "--print_config"])
    assert done.value.code == 0
    file = tmp_path / "options.yaml"
    file.write_text(capsys.readouterr().out)
    reads = "--options" if "--options" in parser._option_string_actions else "--config"
    again, given = parser.parse_args([reads, str(file)]), parser.parse_args(NEEDED[command])
    for options in (again, given):
        options.pop(reads[2:])
    assert again == given
    assert "--help" in parser._option_string_actions and "--config" in parser._option_string_actions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reprot"], "no command 'reprot'; did you mean 'report'?"),
        (["report", "x", "--ouput", "y"], "no option --ouput; did you mean --output?"),
        (["report"], "required: runs"),
        (["demo", "--methods", "sequental"], "--methods is 'sequental'; did you mean 'sequential'?; expected one of"),
        (["study", "runn", "x"], "did you mean 'run'?"),
        (["answers", ".", "--limit", "ten"], "limit: Expected a int. Got value: ten"),
        (["judge", ".", "--judges"], "argument --judges: expected at least one argument"),
        (["data"], "expected `hpa-lightning data check`"),
        (["study", "run", "/nowhere.yaml"], "/nowhere.yaml"),
        (["report", "/nowhere"], "No result file at /nowhere"),
        (["--print_completion", "bsh"], "did you mean 'bash'?"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in told(arguments, capsys)


def test_a_misspelt_key_of_a_commands_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "options.yaml").write_text("outptu: page\n")
    said = told(["report", "run", "--config", str(tmp_path / "options.yaml")], capsys)
    assert "no setting 'outptu'; did you mean 'output'?" in said


def test_names_and_defaults_are_those_of_the_classes() -> None:
    """The parsers repeat them, since importing the classes imports PyTorch."""
    assert data_command.BENCHMARKS == BENCHMARKS
    options = fuse_command.parser().parse_args(NEEDED["fuse"])
    for settings in (RetentionSettings(), CalibrationSettings().settled()):
        for field in dataclasses.fields(settings):
            if field.name in options:
                assert getattr(options, field.name) == getattr(settings, field.name), field.name
    actions = fuse_command.parser()._option_string_actions
    assert actions["--saliency"].choices == SALIENCIES and set(actions["--units"].choices or ()) == set(UNITS)


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        (["fit"], "trainer: {max_epochs: 1}\nseed_everything: 1\ntrainer: {max_epochs: 2}"),
        (["fit"], "trainer:\n  callbacks: [a]\n  max_epochs: 1\n  callbacks: [b]"),
        (["fuse"], "device: cpu\ndevice: cuda"),
    ],
)
def test_a_setting_that_occurs_twice_is_not_lost(
    arguments: list[str], content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML's loader keeps the last one."""
    (tmp_path / "a.yaml").write_text(content)
    name = content.rstrip("]").replace("\n  ", "\n").rpartition("\n")[2].partition(":")[0]
    said = told([*arguments, "--config", str(tmp_path / "a.yaml")], capsys)
    assert f"the key '{name}' occurs twice in one mapping" in said, said


def test_a_message_that_looks_like_what_the_parser_tried_is_not_lost() -> None:
    assert what_was_said("expected a dict with class_path") == "expected a dict with class_path"
    tried = "Does not validate against any of the Union subtypes\nErrors:\n  - no such model\nGiven value: Namespace()"
    assert what_was_said(tried) == "no such model"
