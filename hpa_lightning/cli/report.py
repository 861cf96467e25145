"""`hpa-lightning report`: tables, plots and one page of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.cli.parser import CommandParser


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("report", "Tables, plots and one HTML page from the result folders of earlier runs.")
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders that hold a results.jsonl")
    add("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    add("--unfinished", action="store_true", help="take runs that are not finished, as far as they are")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Write the report."""
    options = parser().parse_args(arguments)
    from hpa_lightning.report import write_report

    written = write_report(options.runs, options.output, unfinished=options.unfinished)
    for what, path in written.items():
        print(f"{what}: {path}")
