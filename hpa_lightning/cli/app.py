"""The command line's first word: which command is meant, and how its errors are reported.

Only the named command's file is imported, and that imports PyTorch when it begins to work: help and mistakes are
answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from hpa_lightning.cli.errors import UserError, on_one_line
from hpa_lightning.cli.interrupts import told_interrupts
from hpa_lightning.values import nearest

PROGRAM = "hpa-lightning"

#: Name -> the file in this package, and what the command does.
COMMANDS = {
    "fit": ("tuning", "tune on the task stream:  hpa-lightning fit --config examples/nano_hpa.yaml"),
    "validate": ("tuning", "score the tasks of the stream"),
    "test": ("tuning", "score all tasks, safety sets and over-refusal"),
    "predict": ("tuning", "write the answers"),
    "export": ("export", "one Hugging Face folder or a peft adapter from a checkpoint, with a model card"),
    "doctor": ("doctor", "versions, devices, what is supported and the memory that a configuration needs"),
    "demo": ("demo", "several methods side by side on the embedded benchmark, or on smol: one table"),
    "benchmark": ("benchmark", "`benchmark build smol`: a benchmark with a real model, put together from packages"),
    "data": ("data", "`data check`: everything that can be wrong with a stream's data; `data filter`: harm out of it"),
    "fuse": ("fuse", "post-training HPA on two checkpoints that were trained elsewhere"),
    "merge": ("merge", "a safety-tuned and a task-tuned model in one, at a ratio or along a front"),
    "drift": ("drift_between", "two checkpoints block by block: hidden states and weights, before against after"),
    "study": ("study", "a grid of runs from one YAML file: run, status, report, archive; `study agree`: two of them"),
    "judge": ("judge", "judge the answers of an earlier run again, and compare judges"),
    "answers": ("answers", "one HTML page of a run's answers before and after, with filters"),
    "rate": ("rate", "people rate answers: `rate export` writes a blinded form, `rate import` puts forms together"),
    "report": ("report", "tables, plots and one HTML page from the result folders of earlier runs"),
}
LIGHTNING = ("fit", "validate", "test", "predict")


def usage() -> str:
    """The text of `hpa-lightning --help`."""
    groups = (
        ("Lightning's commands", [name for name in COMMANDS if name in LIGHTNING]),
        ("Other commands", [name for name in COMMANDS if name not in LIGHTNING]),
    )
    parts = [f"usage: {PROGRAM} COMMAND [options]"]
    for title, names in groups:
        parts.append("\n".join([f"{title}:", *(f"  {name:<10} {COMMANDS[name][1]}" for name in names)]))
    parts.append(
        "Options:\n"
        f"  -h, --help                 this text; `{PROGRAM} COMMAND --help` lists the options of a command\n"
        "  --version                  the version\n"
        "  --print_completion SHELL   completion for bash, zsh or fish, see docs/commands.md\n\n"
        "Every option of a command can be set in a YAML file: --print_config writes one, --config reads it."
    )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `hpa-lightning`; ``arguments`` defaults to the command line's.

    Raises:
        SystemExit: with code 2 for an error of the user, reported in one line on the standard error stream; 130 when
            interrupted; 1 when something else went wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    prefix = f"{PROGRAM} {command}" if command in COMMANDS else PROGRAM
    try:
        with told_interrupts(arguments, PROGRAM):
            _run(command, rest)
    except UserError as error:
        reported = error.with_prefix(prefix)
        print(reported, file=sys.stderr)
        raise reported from error.__cause__
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run(command: str, rest: list[str]) -> None:
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        from importlib.metadata import version

        print(version("hpa-lightning"))
    elif command == "--print_completion":
        from hpa_lightning.cli.completion import print_completion

        print_completion(rest)
    elif command not in COMMANDS:
        raise UserError(f"no command {command!r}{nearest(command, COMMANDS)}; --help lists the commands")
    elif command in LIGHTNING:
        import_module("hpa_lightning.cli.tuning").run(command, rest)
    else:
        _run_own(command, rest)


def _run_own(command: str, rest: list[str]) -> None:
    """Run a command of the package: what it refuses is an error of the user."""
    try:
        import_module(f"hpa_lightning.cli.{COMMANDS[command][0]}").run(rest)
    except (ValueError, OSError) as error:
        raise UserError(on_one_line(str(error))) from error
