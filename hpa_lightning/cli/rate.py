"""`hpa-lightning rate`: people rate the answers of several runs, blind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

_EXPORT = """\
Write a blinded rating form of several runs: form.html, which works from a file and keeps what is chosen in the
browser, form.csv for spreadsheets, and a key that says which run gave which answer. Give the form to the raters and
keep the key."""
_IMPORT = """\
Put the raters' files together: mean ratings, win rates, agreement of the raters, and of judges with them, with
bootstrap intervals."""
_USAGE = "expected `hpa-lightning rate export RUN...` or `hpa-lightning rate import FILE... --key KEY`"


def parser() -> CommandParser:
    """Options of `rate export`."""
    parser = CommandParser("rate export", _EXPORT)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders of runs: results.jsonl and predictions/")
    add("--output", type=Path, default=Path("rating"), help="folder for the raters (default: %(default)s)")
    add("--key", type=Path, help="the key's file (default: OUTPUT.key.json, beside the folder)")
    add("--sets", type=str, nargs="+", help="evaluation sets (default: all that the runs share)")
    add("--step", type=Optional[int], help="after which task, -1 for the aligned model (default: the last)")  # noqa: UP045
    add("--samples", type=int, default=20, help="questions of each set, 0 for all (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what is drawn and shuffled (default: %(default)s)")
    add("--title", type=str, default="Rating form", help="of the page (default: %(default)s)")
    return parser


def import_parser() -> CommandParser:
    """Options of `rate import`."""
    parser = CommandParser("rate import", _IMPORT)
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="the raters' files: JSON of the page, or the filled CSV")
    add("--key", type=Path, required=True, help="the form's key")
    add("--judges", type=str, nargs="+", default=[], help="judges to compare, as `hpa-lightning judge` names them")
    add("--incomplete", action="store_true", help="take forms on which something is not rated")
    add("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    add("--output", type=Path, help="write all figures as JSON too")
    return parser


#: Second word -> parser.
PARSERS = {"export": parser, "import": import_parser}


def run(arguments: Sequence[str]) -> None:
    """Write a form, or put filled forms together."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\n{_EXPORT}\n\n{_IMPORT}")
        return
    if arguments[:1] not in (["export"], ["import"]):
        raise UserError(f"{_USAGE}; --help after one lists its options")
    command = arguments[0]
    options = (parser() if command == "export" else import_parser()).parse_args(arguments[1:])
    if command == "export":
        from hpa_lightning.rating import export_form

        key = options.key or options.output.with_name(f"{options.output.name}.key.json")
        written = export_form(
            options.runs,
            options.output,
            key,
            options.sets,
            options.step,
            options.samples,
            options.seed,
            options.title,
        )
        for what, path in written.items():
            print(f"{what}: {path}")
        return
    read = [path.resolve() for path in (*options.files, options.key)]
    if options.output is not None and options.output.resolve() in read:
        raise UserError(f"--output is {options.output}, which is read; choose another file")
    from hpa_lightning.files import write_text
    from hpa_lightning.rating import rate_outcome

    outcome = rate_outcome(options.files, options.key, options.judges, options.incomplete, options.seed)
    print(outcome.text())
    if options.output is not None:
        write_text(options.output, outcome.json())
        print(f"\nfigures: {options.output}")
