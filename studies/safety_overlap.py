"""How far the input directions of one set of harmful inputs are those of another, of harmless inputs, and of tasks.

    python studies/safety_overlap.py --output runs/overlap --seeds 0

On `nano`'s aligned model. For each distinct layer input, ``U`` are the directions that hold ``--energy`` of the trace
of a set's Hessian (128 inputs of the calibration split with the answers they should get, as the safety calibration
sees them). Of every other set X (harmful ones: of the test split) three figures are taken, means over layers and seeds
in percent:

- *energy*: tr(U^T H_X U) / tr(H_X), the share of its inputs' energy that lies in ``U``;
- *left*: tr(D Q H_X Q D^T) / tr(D H_X D^T) with Q = I - U U^T and D the update of sequential tuning on `captions`: what
  is left of what the update does to the inputs X when it is kept out of ``U``;
- *overlap*: |U^T V|^2 / min(k, l) with the l directions V of X itself, as "mode subspace overlap" in arXiv 2505.14185;
  *chance* is its value for random directions, max(k, l) / c.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from fitting import fit_nano
from harmful_inputs import calibration_records, harmful_examples
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase, StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.nano.harm import SAFETY_KINDS
from hpa_lightning.data.nano.nano_records import TEST_SEED, task_records, to_records
from hpa_lightning.data.record import Record

SIZES = (8, 16, 32, 64, 256, 512)
BASES = ("all", *SAFETY_KINDS, "questions", "known harm", "look-alikes", "skills", *(f"all, {size}" for size in SIZES))
"""What bases are made of: 128 inputs, or as many as the name says."""
TASKS = ("driving", "captions", "reading")
HELD_OUT = {"instructions": ("instruction", None), "other harm": (None, "held out")}
FIGURES = ("energy", "left", "overlap", "chance")


def inputs_of(seed: int, count: int) -> dict[str, list[Record]]:
    """Set -> its inputs with answers: what bases are made of, and what they are held against."""
    found = {}
    for name in BASES:
        what, _, size = name.partition(", ")
        found[f"basis: {name}"] = calibration_records(what, int(size or count), seed)
    for kind in SAFETY_KINDS:
        found[kind] = to_records(harmful_examples(kind, "test", count, TEST_SEED), kind, answered=True)
    for name, (wording, harms) in HELD_OUT.items():
        examples = [
            example
            for kind in SAFETY_KINDS
            for example in harmful_examples(kind, "test", count // len(SAFETY_KINDS), TEST_SEED, wording, harms)
        ]
        found[name] = to_records(examples, name, answered=True)
    for name in ("look-alikes", "skills"):
        found[name] = calibration_records(name, count, f"{seed}/other")
    return found | {name: task_records(name, "calibration", count, seed) for name in TASKS}


def shares(basis: Tensor, own: Tensor, other: Tensor, update: Tensor) -> dict[str, float]:
    """The figures of one layer; see the top of the file.

    Args:
        basis: U, ``(c, k)``.
        own: V, the directions of the set X itself, ``(c, l)``.
        other: Hessian of X, ``(c, c)``.
        update: D, ``(r, c)``.
    """
    rest = update - (update @ basis) @ basis.T

    def action(delta: Tensor) -> Tensor:
        return ((delta @ other) * delta).sum()

    sizes = (basis.shape[1], own.shape[1])
    return {
        "energy": float(((basis.T @ other) * basis.T).sum() / other.trace()),
        "left": float(action(rest) / action(update)),
        "overlap": float((basis.T @ own).square().sum() / min(sizes)),
        "chance": max(sizes) / len(other),
        "directions": sizes[0] / len(other),
    }


class SafetyOverlap(TaskCallback):
    """Gathers the Hessians of all sets before the first task, and holds its update against them at its end.

    Args:
        path: the file of results, one JSON line for each layer, basis and set.
        seed: of the run.
        energy: share of the trace that a basis holds.
        count: inputs of a set.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING
    end_order: ClassVar[int] = EndPhase.REMEMBERING

    def __init__(self, path: Path, seed: int, energy: float, count: int = 128) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        self.calibrator = self.own(Calibrator(self.layers, needs_safety_data=False, needs_task_data=False))
        self.path, self.seed, self.energy, self.count = path, seed, energy, count
        self._hessians: dict[str, dict[str, Tensor]] = {}
        self._directions: dict[str, dict[str, Tensor]] = {}
        self._first: dict[str, str] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        module: Any = pl_module
        collator = MLLMCollator(module.processor)
        for name, records in inputs_of(self.seed, self.count).items():
            chunks: Iterable[list[Record]] = (records[start : start + 32] for start in range(0, len(records), 32))
            batches = [collator.train(chunk) for chunk in chunks]
            hessians, self._first = self.calibrator.hessians(trainer, pl_module, batches, name)
            self._hessians[name] = hessians
            self._directions[name] = {at: F.dominant_subspace(one, self.energy) for at, one in hessians.items()}

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        with self.path.open("a") as file:
            for linear in self.layers:
                name, update = self._first[linear.name], linear.dense_after() - linear.before()
                for basis, other in product(BASES, [key for key in self._hessians if not key.startswith("basis: ")]):
                    directions = (self._directions[key][name] for key in (f"basis: {basis}", other))
                    figures = shares(*directions, self._hessians[other][name], update)
                    place = {"seed": self.seed, "layer": linear.name, "basis": basis, "set": other}
                    file.write(json.dumps({**place, "of": self.energy, **figures}) + "\n")


def table(path: Path, energy: float) -> str:
    """Markdown, one table for each figure: bases in rows, sets in columns, means over layers and seeds in percent."""
    entries = [entry for line in path.read_text().splitlines() if (entry := json.loads(line))["of"] == energy]
    sets = list(dict.fromkeys(entry["set"] for entry in entries))
    parts = []
    for figure in FIGURES:
        lines = [f"| {figure}: basis of | directions | {' | '.join(sets)} |", "|---" * (2 + len(sets)) + "|"]
        for basis in BASES:
            rows = [entry for entry in entries if entry["basis"] == basis]
            cells = [float(np.mean([row[figure] for row in rows if row["set"] == one])) for one in sets]
            cells.insert(0, float(np.mean([row["directions"] for row in rows])))
            lines.append(f"| {basis} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--energy", type=float, default=0.7)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "overlap.jsonl"
    path.unlink(missing_ok=True)
    for seed in arguments.seeds:
        callback = SafetyOverlap(path, seed, arguments.energy)
        fit_nano(seed, [callback], arguments.output / f"seed_{seed}", task_order=["captions"])
    print(table(path, arguments.energy))


if __name__ == "__main__":
    main()
