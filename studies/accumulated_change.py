"""How the changes that a budget allows in each task add up over a stream, and what is left of the refusals.

Null-space projection with budgets, on `nano`. At each task's end it is measured, for every tuned layer and on the
harmful requests of the calibration as they enter the layer of the aligned model, how much the layer's output differs
from before this task, and from the aligned model's: || X (W' - W)^T || / || X W^T ||. The same for the inputs of each
earlier task, since its end. "Sum" adds up the tasks' own changes: what the accumulated one can be at most; "root of
squares" is what it is where the tasks' changes are uncorrelated.

    python studies/accumulated_change.py --output runs/accumulated --seeds 0 --methods output=0.05 energy=0.7

Prints means over layers, and the largest layer's in brackets, percent; then the answers that are no refusals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from fitting import fit_nano
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks import CalibrationSettings, NullSpaceProjection
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import score_set
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.nano.lexicon import TASK_NAMES


class AccumulatedChange(TaskCallback):
    """Writes, at each task's end, how much the layers' outputs have changed; see the module.

    Args:
        path: the file of results, JSON lines.
        run: what is added to every line.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING
    end_order: ClassVar[int] = EndPhase.REMEMBERING

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        self.calibrator = self.own(Calibrator(self.layers, settings=CalibrationSettings(safety_samples=128)))
        self.path, self.run = path, dict(run)
        self._inputs: dict[str, dict[str, Tensor]] = {}  # safety, or a task -> layer -> X^T X
        self._since: dict[str, dict[str, Tensor]] = {}  # the same -> layer -> the weight that change is counted from
        self._own: dict[str, list[float]] = {}  # layer -> the tasks' own changes on the safety inputs

    @torch.no_grad()
    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        if task.index == 0:
            self._take(trainer, pl_module, "safety", self.calibrator.safety_batches(trainer, pl_module))

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        for what, hessians in self._inputs.items():
            changes, sums, roots = [], [], []
            for linear in self.layers:
                aligned, hessian = self._since[what][linear.name], hessians[linear.name]
                scale = F.output_energy(aligned, hessian) ** 0.5
                changes.append(F.output_energy(linear.dense_after() - aligned, hessian) ** 0.5 / scale)
                if what == "safety":
                    own = self._own.setdefault(linear.name, [])
                    own.append(F.output_energy(linear.dense_after() - linear.before().float(), hessian) ** 0.5 / scale)
                    sums.append(sum(own))
                    roots.append(sum(change**2 for change in own) ** 0.5)
            found = {"changes": changes, "sums": sums, "roots": roots}
            self._note({"after": task.name, "inputs": what, **found})
        rates = {}
        data: Any = trainer.datamodule
        learnt = [one.name for one in data.tasks[: task.index + 1]]
        for one in data.evaluation_sets():
            if one.kind == "safety" or one.name in learnt:
                rates[one.name] = score_set(trainer, pl_module, one).score
        self._note({"after": task.name, "scores": rates})
        self._take(trainer, pl_module, task.name, self.calibrator.task_batches(trainer, task))
        self.layers.clear()

    def _take(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str, batches: Any) -> None:
        held, first = self.calibrator.hessians(trainer, pl_module, batches, what, damped=False)
        self._inputs[what] = {name: held[other] for name, other in first.items()}
        self._since[what] = {linear.name: linear.dense_after().clone() for linear in self.layers}

    def _note(self, values: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**self.run, **values}) + "\n")


def table(path: Path) -> str:
    """Markdown: changes and scores after each task, of each run."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    text = []
    for run in dict.fromkeys((entry["method"], entry["seed"]) for entry in entries):
        chosen = [entry for entry in entries if (entry["method"], entry["seed"]) == run]
        lines = [
            f"{run[0]}, seed {run[1]}",
            "",
            "| after | safety: change | sum | root of squares | earlier tasks: change |",
            "|---|---|---|---|---|",
        ]
        for after in dict.fromkeys(entry["after"] for entry in chosen):
            rows = [entry for entry in chosen if entry["after"] == after and "inputs" in entry]
            safety = next(row for row in rows if row["inputs"] == "safety")
            earlier = [change for row in rows if row is not safety for change in row["changes"]]
            cells = [safety["changes"], safety["sums"], safety["roots"], earlier]
            lines.append(f"| {after} | {' | '.join(map(_shown, cells))} |")
        names = list([entry for entry in chosen if "scores" in entry][-1]["scores"])
        lines += ["", f"| after | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for entry in chosen:
            if "scores" in entry:
                scores = " | ".join(f"{100 * entry['scores'][n]:.0f}" if n in entry["scores"] else "-" for n in names)
                lines.append(f"| {entry['after']} | {scores} |")
        text.append("\n".join(lines))
    return "\n\n".join(text)


def _shown(values: list[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f} ({100 * max(values):.1f})" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--methods", nargs="+", default=["output=0.05"], help="as stream=0.085, output=0.05, energy=0.7"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASK_NAMES), choices=TASK_NAMES)
    parser.add_argument("--table", action="store_true", help="print what OUTPUT holds, measure nothing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "accumulated.jsonl"
    for seed in [] if arguments.table else arguments.seeds:
        for method in arguments.methods:
            rule, number = method.split("=")
            options: dict[str, Any] = {"stream_budget" if rule == "stream" else "budget": float(number)}
            if rule == "energy":
                options = {"energy": float(number)}
            elif rule != "stream":
                options["share"] = rule
            projection = NullSpaceProjection(calibration=CalibrationSettings(safety_samples=128), **options)
            watcher = AccumulatedChange(path, {"method": method, "seed": seed})
            folder = arguments.output / f"seed_{seed}" / method.replace("=", "_")
            fit_nano(seed, [projection, watcher], folder, task_order=arguments.tasks)
    print(table(path))


if __name__ == "__main__":
    main()
