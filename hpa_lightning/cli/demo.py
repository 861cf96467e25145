"""`hpa-lightning demo`: the main job on the embedded benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.parser import CommandParser
from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import read_text

_STUDY = Path(__file__).parents[1] / "study" / "demo_study.yaml"


def parser() -> CommandParser:
    """Options of the command; the methods are those of its study file."""
    study = load_yaml(read_text(_STUDY), str(_STUDY))
    known, default = list(study["methods"]), study["groups"]["demo"]["methods"]
    parser = CommandParser("demo", "Run the main job on the embedded benchmark and print one table.")
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/demo"), help="result folder (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[101], help="seeds of the runs (default: 101)")
    text = f"of {', '.join(known)} (default: {' '.join(default)})"
    add("--methods", nargs="+", choices=known, default=default, metavar="METHOD", help=text)
    add("--jobs", type=Optional[int], help="runs at a time (default: one for each core)")  # noqa: UP045
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run the demo."""
    options = parser().parse_args(arguments)
    from hpa_lightning.study.demo_study import run_demo

    run_demo(options.output, options.seeds, options.methods, options.jobs)
