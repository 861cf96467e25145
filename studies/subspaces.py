"""Where a task's update acts: how much of it lies along the few directions that the safety inputs live in.

Sequential tuning on `nano`. For each task and layer the eigenvectors U of the safety inputs' Hessian H_s (from the
model before the task) are taken that hold a share of its trace; the task's update D and the Hessian H_t of its inputs
are measured against them. Nothing is changed.

    python studies/subspaces.py --output runs/subspaces --seeds 0

Prints one row for each share of the trace: means over layers, tasks and seeds, in percent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import torch
from fitting import fit_nano
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks import CalibrationSettings
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.tuned_layers import TunedLayers

ENERGIES = (0.3, 0.5, 0.7, 0.9)
COLUMNS = {
    "directions": "directions taken",
    "task_inputs": "energy of the task's inputs in them",
    "update": "energy of the update in them",
    "on_safety": "action on safety inputs through them",
    "on_task": "action on task inputs through the others",
}


class UpdateSubspaces(TaskCallback):
    """Measures every task's update at its end, before it is merged.

    Args:
        path: the file of results, one JSON line for each task, layer and share of the trace.
        seed: of the run, for the results.
        safety_samples: size of the safety calibration set.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING
    end_order: ClassVar[int] = EndPhase.REMEMBERING

    def __init__(self, path: Path, seed: int, safety_samples: int = 128) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        self.calibrator = self.own(Calibrator(self.layers, settings=CalibrationSettings(safety_samples=safety_samples)))
        self.path, self.seed = path, seed
        self._safety: dict[str, Tensor] = {}
        self._first: dict[str, str] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        batches = self.calibrator.safety_batches(trainer, pl_module)
        self._safety, self._first = self.calibrator.hessians(trainer, pl_module, batches, "safety")

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        tasks, _ = self.calibrator.hessians(trainer, pl_module, self.calibrator.task_batches(trainer, task), "task")
        with self.path.open("a") as file:
            for linear in self.layers:
                name = self._first[linear.name]
                update = linear.dense_after() - linear.before()
                for energy in ENERGIES:
                    shares = subspace_shares(update, self._safety[name], tasks[name], energy)
                    place = {"seed": self.seed, "task": task.name, "layer": linear.layer, "module": linear.name}
                    file.write(json.dumps({**place, "energy": energy, **shares}) + "\n")


def subspace_shares(update: Tensor, safety: Tensor, task: Tensor, energy: float) -> dict[str, float]:
    """How an update lies to the directions that hold ``energy`` of the safety inputs.

    Args:
        update: D, ``(r, c)``.
        safety, task: Hessians of the inputs, ``(c, c)``.
        energy: share of the safety Hessian's trace.

    Returns:
        Fractions: ``directions`` k / c; ``task_inputs`` tr(U^T H_t U) / tr(H_t); ``update`` |D U|^2 / |D|^2;
        ``on_safety`` tr(D P H_s P D^T) / tr(D H_s D^T) with P = U U^T (H_s does not mix U with the rest); ``on_task``,
        what is left of tr(D H_t D^T) when D loses its part along U.
    """
    basis = F.dominant_subspace(safety, energy)
    along = update @ basis
    rest = update - along @ basis.T

    def action(delta: Tensor, hessian: Tensor) -> Tensor:
        return ((delta @ hessian) * delta).sum()

    return {
        "directions": basis.shape[1] / basis.shape[0],
        "task_inputs": float(action(basis.T, task) / task.trace()),
        "update": float(along.square().sum() / update.square().sum()),
        "on_safety": float(1 - action(rest, safety) / action(update, safety)),
        "on_task": float(action(rest, task) / action(update, task)),
    }


def table(path: Path) -> str:
    """Markdown: means over layers, tasks and seeds, in percent."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [f"| share of the trace | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for energy in ENERGIES:
        rows = [entry for entry in entries if entry["energy"] == energy]
        means = [100 * float(np.mean([row[key] for row in rows])) for key in COLUMNS]
        lines.append(f"| {100 * energy:.0f} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "subspaces.jsonl"
    path.unlink(missing_ok=True)
    for seed in arguments.seeds:
        fit_nano(seed, [UpdateSubspaces(path, seed)], arguments.output / f"seed_{seed}")
    print(table(path))


if __name__ == "__main__":
    main()
