"""`hpa-lightning answers`: one page of a run's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.parser import CommandParser


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("answers", "One HTML page of a run's answers before and after, with filters.")
    add = parser.add_argument
    add("run", type=Path, help="folder of a run: results.jsonl and predictions/")
    add("--before", type=int, default=-1, help="step before (default: -1, the aligned model)")
    add("--after", type=Optional[int], help="step after (default: the last one)")  # noqa: UP045 - Python 3.10
    add("--sets", type=str, nargs="+", help="evaluation sets (default: all)")
    add("--limit", type=int, default=200, help="samples of each set, 0 for all (default: %(default)s)")
    add("--unfinished", action="store_true", help="show a run that is not finished, as far as it is")
    add("--output", type=Path, help="the file (default: answers.html in the run's folder)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Write the page."""
    options = parser().parse_args(arguments)
    from hpa_lightning.report.answers_page import write_answers

    path = write_answers(
        options.run,
        options.output,
        options.before,
        options.after,
        options.sets,
        options.limit or None,
        options.unfinished,
    )
    print(f"answers: {path}")
