"""The command `hpa-lightning study`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.declarations import check_classes
from hpa_lightning.study.grid import read_study
from hpa_lightning.study.runner import Interrupted, run_cells
from hpa_lightning.study.store import Store

#: Whose classes a study may name without being asked.
PACKAGES = ("hpa_lightning", "lightning", "pytorch_lightning", "torch", "torchmetrics", "transformers", "peft", "timm")

_DESCRIPTION = """\
run      runs the cells that are not finished; interrupt it at any moment, the same command goes on
status   lists the cells of every group and whether they are finished
report   tables and figures of the finished cells, as results.md and results.html
archive  gathers the finished cells in one file, to be kept or committed"""


def study_command(arguments: Sequence[str]) -> None:
    """Run, list, report or archive a study."""
    parser = argparse.ArgumentParser(
        prog="hpa-lightning study",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["run", "status", "report", "archive"])
    parser.add_argument("study", type=Path, help="the study's YAML file")
    parser.add_argument("--groups", nargs="+", help="only these groups of the study (default: all)")
    parser.add_argument("--store", type=Path, help="folder of the runs (default: runs/ and the study file's name)")
    parser.add_argument("--archive", type=Path, nargs="+", default=[], help="files of finished cells that count too")
    parser.add_argument("--jobs", type=int, help="run: processes at a time (default: one for each GPU or core)")
    parser.add_argument(
        "--imports",
        nargs="+",
        default=[],
        help="run: packages of your own whose classes the study names; their code runs",
    )
    parser.add_argument("--output", type=Path, help="report: a folder; archive: a file")
    options = parser.parse_args(arguments)
    if options.action in ("report", "archive") and options.output is None:
        parser.error(f"{options.action} needs --output")
    try:
        study = read_study(options.study)
        store = Store(options.store or Path("runs") / options.study.stem, options.archive)
        cells = study.cells(options.groups)
        if options.action == "run":
            for cell in cells:
                check_classes(cell.config, {*PACKAGES, *options.imports}, f"{options.study}, {cell.key}")
            failed = run_cells(cells, store, options.jobs)
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
    except (ValueError, OSError) as error:
        raise SystemExit(f"hpa-lightning study: {error}") from error
    except Interrupted:
        raise SystemExit(130) from None
