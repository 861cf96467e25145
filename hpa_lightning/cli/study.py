"""`hpa-lightning study`: a grid of runs from one YAML file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

#: Whose classes a study may name without being asked.
PACKAGES = ("hpa_lightning", "lightning", "pytorch_lightning", "torch", "torchmetrics", "transformers", "peft", "timm")

_DESCRIPTION = """\
run      runs the cells that are not finished; interrupt it at any moment, the same command continues
status   lists the cells of every group: finished, running (in whichever process) or to run
report   tables and figures of the finished cells, as results.md and results.html
archive  gathers the finished cells in one file, to be kept or committed
windows  freezes each window of decoder blocks in turn in the fit of a configuration, and reports it (with --output)
agree    whether two studies put the methods that a file pairs in the same order (Kendall's tau; --output: a page)"""

_WHAT = "what to do with the study"
_STUDY = "the study's YAML file; windows: the configuration of a fit; agree: a file of pairs"
_IMPORTS = "run: packages of your own whose classes the study names; their code runs"


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("study", _DESCRIPTION)
    add = parser.add_argument
    add("action", choices=["run", "status", "report", "archive", "windows", "agree"], help=_WHAT)
    add("study", type=Path, help=_STUDY)
    add("--groups", type=str, nargs="+", help="only these groups of the study (default: all)")
    add("--store", type=Path, help="folder of the runs (default: runs/ and the study file's name)")
    add("--archive", type=Path, nargs="+", default=[], help="files of finished cells that count too")
    add("--jobs", type=Optional[int], help="run: processes at a time (default: one for each GPU or core)")  # noqa: UP045
    add("--imports", type=str, nargs="+", default=[], help=_IMPORTS)
    add("--output", type=Path, help="report, windows, agree: a folder; archive: a file")
    add("--size", type=int, default=2, help="windows: blocks that are frozen together (default: 2)")
    add("--stride", type=int, default=1, help="windows: blocks from one window to the next (default: 1)")
    add("--seeds", type=int, nargs="+", default=[0], help="windows: seeds of the runs (default: 0)")
    add("--blocks", type=Optional[int], help="windows: decoder blocks (default: the model is built to count)")  # noqa: UP045
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run, list, report or archive a study."""
    options = parser().parse_args(arguments)
    if options.action in ("report", "archive") and options.output is None:
        raise UserError(f"{options.action} needs --output")
    if options.action == "agree":
        _agree(options)
        return
    from hpa_lightning.declarations import check_classes
    from hpa_lightning.study import Store, read_study, run_cells
    from hpa_lightning.study.runner import Interrupted
    from hpa_lightning.study.store import default_store

    if options.action == "windows":
        study = _windows(options)
    else:
        study = read_study(options.study)
    store = Store(options.store or default_store(options.study), options.archive)
    store.warn_of_other_archives(study)
    cells = study.cells(options.groups)
    if options.action in ("run", "windows"):
        packages = (*PACKAGES, *options.imports)
        for cell in cells:
            check_classes(cell.config, packages, f"{options.study}, {cell.key}")
        try:
            failed = run_cells(cells, store, options.jobs, packages=packages)
        except Interrupted:
            raise SystemExit(130) from None
        if failed:
            raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the same command tries them again.")
    if options.action == "status":
        for cell in cells:
            lacks = store.lacks(cell)
            reason = f" (run, but {lacks})" if lacks else ""
            state = "finished" if store.finished(cell) else "running" if store.is_locked(cell) else "to run"
            print(f"{state:<8}  {cell.key}{reason}")
    elif options.action == "archive":
        print(f"{options.output}: {store.archive(cells, options.output)} cells")
    elif options.action == "report" or (options.action == "windows" and options.output is not None):
        from hpa_lightning.study.reporting import report_study  # matplotlib, which running does not need

        command = _windows_command(options) if options.action == "windows" else None
        written = report_study(study, store, options.study, options.groups, options.output, command)
        print(f"{written['markdown']}\n{written['html']}")


def _windows(options: Any) -> Any:
    from hpa_lightning.declarations import load_yaml
    from hpa_lightning.parsing import read_text
    from hpa_lightning.study.windows import windows_study

    config = load_yaml(read_text(options.study), str(options.study))
    return windows_study(config, options.study, options.size, options.stride, options.seeds, options.blocks)


def _windows_command(options: Any) -> str:
    """What makes the study and its page again."""
    from hpa_lightning.study.store import store_options

    given: dict[str, Any] = {"--size": [options.size], "--stride": [options.stride], "--seeds": options.seeds}
    given |= {"--blocks": [options.blocks] if options.blocks is not None else []}
    given |= {"--archive": options.archive, "--imports": options.imports, "--output": [options.output]}
    words = [str(word) for option, values in given.items() if values for word in (option, *values)]
    store = [] if options.store is None else store_options(options.store, options.study)
    return shlex.join(["hpa-lightning", "study", "windows", str(options.study), *store, *words])


def _agree(options: Any) -> None:
    if options.groups or options.archive or options.store:
        raise UserError("agree takes groups, archives and stores from its file, which names those of both studies")
    from hpa_lightning.report.agreement_page import agreement_text, write_agreement
    from hpa_lightning.study.agreeing import agreement_sections
    from hpa_lightning.study.pairs_file import read_pairs

    pairs = read_pairs(options.study)
    sections = agreement_sections(pairs, options.study, options.output)
    print(agreement_text(sections))
    if options.output is not None:
        written = write_agreement(sections, options.output, pairs.title, pairs.text)
        print(f"\n{written['markdown']}\n{written['html']}")
