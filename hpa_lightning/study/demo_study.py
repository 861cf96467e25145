"""The main job on the embedded benchmark: sequential tuning, HPA in both modes and null-space projection, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.report import method_table, write_report
from hpa_lightning.report.run_tables import broken_runs
from hpa_lightning.study.grid import Cell, Study
from hpa_lightning.study.runner import run_cells
from hpa_lightning.study.store import Store
from hpa_lightning.study.study_file import expand_study

STUDY = Path(__file__).with_suffix(".yaml")

_INTRODUCTION = """\
A small multimodal model that was taught to refuse harmful requests is tuned on six visual tasks, one after another.
AP           average performance: share of correct answers over all six tasks after the last one   (higher is better)
BWT          backward transfer: how much the earlier tasks have changed since they were learned    (higher is better)
MASR         mean attack success rate: share of harmful inputs that are answered, over three sets  (lower is better)
DASR         rise of MASR over the aligned model that everything started from                      (lower is better)
over-refusal share of harmless, dangerous-sounding inputs that are refused                         (lower is better)
All in percent; intervals are 95 % over seeds where there are several."""


def demo_study(seeds: Sequence[int], methods: Sequence[str]) -> Study:
    """The demo's study file with other seeds and methods of it."""
    content = load_yaml(read_text(STUDY), str(STUDY))
    content["groups"]["demo"] |= {"seeds": list(seeds), "methods": list(methods)}
    return expand_study(content, STUDY)


def run_demo(output: Path, seeds: Sequence[int], methods: Sequence[str], jobs: int | None = None) -> str:
    """Run the methods on the embedded benchmark, several at a time, and print one table.

    Args:
        output: the runs' folder; finished runs in it are not run again, and an interrupted one continues.
        seeds: of the runs.
        methods: names in ``demo_study.yaml``.
        jobs: runs at a time; by default one for each core.

    Returns:
        The table.

    Raises:
        ValueError: ``output`` holds other runs under these names.
        Interrupted: on Ctrl-C or SIGTERM.
        SystemExit: a run failed.
    """
    print(_INTRODUCTION, flush=True)
    return report_cells(demo_study(seeds, methods).cells(), output, jobs, "hpa-lightning demo")


def report_cells(cells: Sequence[Cell], output: Path, jobs: int | None, command: str) -> str:
    """Run what is not finished, write the report to ``output/report`` and print one table, which is returned.

    Raises:
        ValueError: ``output`` holds other runs under these names.
        Interrupted: on Ctrl-C or SIGTERM.
        SystemExit: a run failed.
    """
    store = Store(output)
    if failed := run_cells(cells, store, jobs):
        raise SystemExit(f"{command}: {len(failed)} of {len(cells)} runs failed; the same command tries again.")
    runs = [finished.run for cell in cells if (finished := store.finished(cell)) is not None]
    files = write_report([store.folder(cell) for cell in cells], output / "report")
    table = method_table(runs).text()
    warnings = "".join(f"\n\nWarning: {text}" for text in broken_runs(runs))
    print(f"\n{table}{warnings}\n\nThe page with plots: {files['html']}")
    return table
