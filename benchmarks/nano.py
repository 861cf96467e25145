"""A whole run on the embedded benchmark on a device, against the archived run of the same cell on a CPU.

    python benchmarks/nano.py --device cuda
    python benchmarks/nano.py --device cpu --small

Training on a device rounds elsewhere, so that scores differ; the spread of the archived seeds tells how much that may
be. The aligned model's scores are no matter of training: they have to be equal up to near-ties of its logits.
`--small` runs one task of two steps, and the same on a CPU to compare with.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import command, commit, device_name

from hpa_lightning.report.significance import estimate
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.study.grid import Cell
from hpa_lightning.study.store import Store
from hpa_lightning.study.study_file import read_study

ROOT = Path(__file__).parent.parent
SMALL = {
    "task_order": ["driving"],
    "steps": 2,
    "train_size": 16,
    "test_size": 4,
    "calibration_size": 8,
    "harmful_calibration_size": 24,
}
FIGURES = ("AP", "BWT", "MASR", "over_refusal")


def fit(cell: Cell, folder: Path, device: str, small: bool, limit: float | None = None) -> RunResults:
    """Run the cell's configuration; after ``limit`` seconds what is there counts."""
    config: dict[str, Any] = cell.config_for(folder)
    config["trainer"]["accelerator"] = device
    if small:
        config["data"]["init_args"] |= SMALL
        for callback in config["trainer"]["callbacks"]:
            if calibration := callback.get("init_args", {}).get("calibration"):
                calibration |= dict.fromkeys(calibration.keys() & {"safety_samples", "task_samples"}, 8)
    folder.mkdir(parents=True)
    path = folder / "config.in.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    arguments = [sys.executable, "-m", "hpa_lightning.cli", "fit", "--config", str(path)]
    with (folder / "log.txt").open("w") as log:
        try:
            done = subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            print(f"Cut off after {limit:.0f} s.")
        else:
            if done.returncode != 0:
                raise SystemExit((folder / "log.txt").read_text()[-3000:])
    return RunResults.from_file(folder)


def score_table(reference: RunResults, found: RunResults) -> list[str]:
    """Every step's mean scores in both runs, and how many of the single scores are equal."""
    lines = ["| after | scores | equal | largest difference | mean difference |", "|---|---|---|---|---|"]
    for step in found.steps:
        pairs = [
            (score, other[name])
            for kind in ("task", "safety", "over_refusal")
            for other in [reference.scores(step, kind)]
            for name, score in found.scores(step, kind).items()
            if math.isfinite(score)  # a run that was cut off has not measured all
        ]
        apart = [100 * abs(one - two) for one, two in pairs]
        name = "aligned model" if step < 0 else found.tasks[step]
        same = sum(value < 1e-4 for value in apart)
        mean = sum(apart) / len(apart)
        lines.append(f"| {name} | {len(pairs)} | {same} | {max(apart):.0f} points | {mean:.1f} points |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cell", default="clean/hpa-post-p_min-7.0-p_max-18.0/seed_101")
    parser.add_argument("--limit", type=float, help="seconds of the run")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    study = read_study(ROOT / "studies" / "nano.yaml")
    store = Store("nowhere", [ROOT / "docs" / "results" / "nano.jsonl"])
    cells = {cell.key: cell for cell in study.cells()}
    cell = cells[options.cell]
    print(f"\n{device_name(torch.device(options.device))}, commit {commit()}\n{command()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = fit(cell, Path(folder) / "device", options.device, options.small, options.limit)
        seconds = time.perf_counter() - start
        archived = store.finished(cell)
        assert archived is not None
        reference, cpu_seconds = archived.run, archived.seconds
        if options.small:
            start = time.perf_counter()
            reference = fit(cell, Path(folder) / "cpu", "cpu", True)
            cpu_seconds = time.perf_counter() - start
        print(f"{cell.title}, {cell.condition}, seed {cell.seed}: {seconds:.0f} s; on the CPU {cpu_seconds:.0f} s.\n")
        print("\n".join(score_table(reference, found)))
    if found.steps != reference.steps:
        return
    alike = [other for other in cells.values() if (other.method, other.condition) == (cell.method, cell.condition)]
    runs = [store.finished(other) for other in alike if not options.small]
    seeds = [run.run.summary() for run in runs if run is not None]
    print("\n| figure, % | device | CPU | CPU, its seeds |\n|---|---|---|---|")
    for name in FIGURES:
        spread = estimate([100 * summary[name] for summary in seeds])
        of_seeds = f"{spread.mean:.1f} ± {spread.half_width:.1f} ({len(seeds)})" if len(seeds) > 1 else ""
        print(f"| {name} | {100 * found.summary()[name]:.1f} | {100 * reference.summary()[name]:.1f} | {of_seeds} |")


if __name__ == "__main__":
    main()
