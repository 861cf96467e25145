"""`hpa-lightning study`: a grid of runs from one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

#: Whose classes a study may name without being asked.
PACKAGES = ("hpa_lightning", "lightning", "pytorch_lightning", "torch", "torchmetrics", "transformers", "peft", "timm")

_DESCRIPTION = """\
run      runs the cells that are not finished; interrupt it at any moment, the same command goes on
status   lists the cells of every group and whether they are finished
report   tables and figures of the finished cells, as results.md and results.html
archive  gathers the finished cells in one file, to be kept or committed"""

_IMPORTS = "run: packages of your own whose classes the study names; their code runs"


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("study", _DESCRIPTION)
    add = parser.add_argument
    add("action", choices=["run", "status", "report", "archive"], help="what to do with the study")
    add("study", type=Path, help="the study's YAML file")
    add("--groups", type=str, nargs="+", help="only these groups of the study (default: all)")
    add("--store", type=Path, help="folder of the runs (default: runs/ and the study file's name)")
    add("--archive", type=Path, nargs="+", default=[], help="files of finished cells that count too")
    add("--jobs", type=Optional[int], help="run: processes at a time (default: one for each GPU or core)")  # noqa: UP045
    add("--imports", type=str, nargs="+", default=[], help=_IMPORTS)
    add("--output", type=Path, help="report: a folder; archive: a file")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run, list, report or archive a study."""
    options = parser().parse_args(arguments)
    if options.action in ("report", "archive") and options.output is None:
        raise UserError(f"{options.action} needs --output")
    from hpa_lightning.declarations import check_classes
    from hpa_lightning.study import Store, read_study, run_cells
    from hpa_lightning.study.runner import Interrupted

    study = read_study(options.study)
    store = Store(options.store or Path("runs") / options.study.stem, options.archive)
    cells = study.cells(options.groups)
    if options.action == "run":
        for cell in cells:
            check_classes(cell.config, {*PACKAGES, *options.imports}, f"{options.study}, {cell.key}")
        try:
            failed = run_cells(cells, store, options.jobs)
        except Interrupted:
            raise SystemExit(130) from None
        if failed:
            raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the same command tries them again.")
    elif options.action == "status":
        for cell in cells:
            print(f"{'finished' if store.finished(cell) else 'to run  '}  {cell.key}")
    elif options.action == "archive":
        print(f"{options.output}: {store.archive(cells, options.output)} cells")
    else:
        from hpa_lightning.study.reporting import report_study  # matplotlib, which running does not need

        written = report_study(study, store, options.study, options.groups, options.output)
        print(f"{written['markdown']}\n{written['html']}")
