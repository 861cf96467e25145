"""Every command's parser: help without PyTorch, YAML of options and back, mistakes in one line, completion."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.cli import data as data_command
from hpa_lightning.cli import fuse as fuse_command
from hpa_lightning.cli import main
from hpa_lightning.cli.app import COMMANDS, LIGHTNING
from hpa_lightning.data.benchmarks import BENCHMARKS
from hpa_lightning.functional.hpa import SALIENCIES, UNITS

OWN = [name for name in COMMANDS if name not in LIGHTNING]
HEAVY = ("torch", "lightning", "transformers", "peft", "matplotlib", "sklearn", "scipy", "numpy", "PIL", "torchmetrics")
#: The least that a command needs beside its options.
NEEDED = {
    "answers": ["run"],
    "data": [],
    "doctor": [],
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


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a mistake is answered with, after checking its form."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if arguments[0] not in LIGHTNING or line.startswith("hpa-lightning")]
    assert stopped.value.code == 2 and lines == [str(stopped.value)] and lines[0].startswith("hpa-lightning")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reprot"], "no command 'reprot'; did you mean 'report'?"),
        (["report", "x", "--ouput", "y"], "no option --ouput; did you mean --output?"),
        (["report"], "required: runs"),
        (["demo", "--methods", "sequental"], "--methods is 'sequental'; expected one of sequential, in-training"),
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"trainer": {"max_epoch": 3}}, "no setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ({"modle": "NanoModule"}, "no setting 'modle'; did you mean 'model'?"),
        (
            {"model": {"class_path": "hpa_lightning.modules.NanoModul"}},
            "model: no class 'hpa_lightning.modules.NanoModul'; did you mean 'hpa_lightning.modules.NanoModule'?",
        ),
        (
            {"model": {"class_path": "hpa_lightnin.modules.NanoModule"}},
            "No module named 'hpa_lightnin'; did you mean 'hpa_lightning.modules.NanoModule'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"learning_rat": 1}}},
            "model: hpa_lightning.modules.NanoModule has no setting 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"lora": {"rnk": 8}}}},
            "model.lora: hpa_lightning.modules.LoraSettings has no setting 'rnk'; did you mean 'rank'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"zzz": 8}}},
            "has no setting 'zzz'; it has learning_rate, lora, steps",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "hpa_lightning.callbacks.HarmonicFusion"}]}},
            "trainer.callbacks: no class 'hpa_lightning.callbacks.HarmonicFusion'; did you mean "
            "'hpa_lightning.callbacks.HarmoniousFusion'?",
        ),
        (
            {
                "trainer": {
                    "callbacks": [
                        {
                            "class_path": "hpa_lightning.callbacks.HarmoniousFusion",
                            "init_args": {"retention": {"p_mim": 5}},
                        }
                    ]
                }
            },
            "RetentionSettings has no setting 'p_mim'; did you mean 'p_min'?",
        ),
        (
            {
                "model": "NanoModule",
                "data": "hpa_lightning.data.nano.NanoDataModule",
                "trainer": {
                    "callbacks": [
                        {
                            "class_path": "hpa_lightning.callbacks.HarmoniousFusion",
                            "init_args": {"retention": {"p_min": 50.0}},
                        }
                    ]
                },
            },
            "p_min, p_max are 50.0, 15.0; expected 0 <= p_min <= p_max <= 100",
        ),
    ],
)
def test_mistakes_in_a_fits_yaml(
    config: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    assert expected in told(["fit", "--config", str(tmp_path / "fit.yaml")], capsys)


def test_names_and_defaults_are_those_of_the_classes() -> None:
    """The parsers repeat them, since importing the classes imports PyTorch."""
    assert data_command.BENCHMARKS == BENCHMARKS
    options = fuse_command.parser().parse_args(NEEDED["fuse"])
    for settings in (RetentionSettings(), CalibrationSettings()):
        for field in dataclasses.fields(settings):
            if field.name in options:
                assert getattr(options, field.name) == getattr(settings, field.name), field.name
    actions = fuse_command.parser()._option_string_actions
    assert actions["--saliency"].choices == SALIENCIES and set(actions["--units"].choices or ()) == set(UNITS)


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _hpa_lightning; "
    shell = f'source {script}; {line} printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert not done.stderr
    return done.stdout.split()


def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--print_completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    assert complete(script, "hpa-lightning", "re") == ["report"]
    assert complete(script, "hpa-lightning", "report", "--out") == ["--output"]
    assert complete(script, "hpa-lightning", "fit", "--trainer.max_ep") == ["--trainer.max_epochs"]
    assert "--ckpt_path" in complete(script, "hpa-lightning", "test", "--ck")
    assert complete(script, "hpa-lightning", "fuse", "--saliency", "m") == ["multiply"]
    assert complete(script, "hpa-lightning", "study", "st") == ["status"]
    assert complete(script, "hpa-lightning", "report", "run") == [], "bash offers files then"
    main(["--print_completion", "fish"])
    fish = capsys.readouterr().out
    assert "-n '__fish_seen_subcommand_from report' -l output -r" in fish
    main(["--print_completion", "zsh"])
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
