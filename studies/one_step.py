"""What a task's update does to the task, to the earlier tasks and to safety, and which part of it does that.

Sequential tuning on `nano`. At each task's end, before the update is merged, variants of it are put into the model and
scored: scaled down, without one block or one kind of layer, without a share of the columns chosen in several ways.
Nothing is carried over from a variant: training goes on from the whole update.

    python studies/one_step.py --output runs/one_step --seeds 0 1 --tasks captions charts reading

Every variant is one line of OUTPUT/variants.jsonl; what is there is not measured again. The table comes at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

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
from hpa_lightning.callbacks.task_evaluation import score_set
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.nano.lexicon import TASK_NAMES
from hpa_lightning.modules.tuned_linear import LoraLinear

Change = Callable[[LoraLinear], "tuple[Tensor, Tensor]"]
"""A layer's LoRA factors as a variant has them: ``lora_a (q, c)``, ``lora_b (r, q)``."""

SAFETY_SAMPLES = (8, 64)


class UpdateVariants(TaskCallback):
    """Scores variants of the update at the end of the named tasks.

    Args:
        path: the file of results.
        seed: of the run, for the results and for random columns.
        tasks: names of the tasks to look at.
    """

    start_order: ClassVar[int] = StartPhase.MEASURING
    end_order: ClassVar[int] = EndPhase.REMEMBERING

    def __init__(self, path: Path, seed: int, tasks: list[str]) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        settings = CalibrationSettings(safety_samples=max(SAFETY_SAMPLES))
        self.calibrator = self.own(Calibrator(self.layers, settings=settings))
        self.path, self.seed, self.tasks = path, seed, tasks
        self._safety: dict[int, dict[str, Tensor]] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        batches = self.calibrator.safety_batches(trainer, pl_module)  # made by the aligned model, before the first task
        per_batch = self.calibrator.settings.batch_size
        self._safety = {
            size: self.calibrator.inverse_diagonals(trainer, pl_module, batches[: size // per_batch], f"safety, {size}")
            for size in SAFETY_SAMPLES
        }

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        if task.name not in self.tasks:
            return
        diagonals = self.calibrator.task_diagonals(trainer, pl_module, task)
        update = [(linear, *_factors(linear)) for linear in self.layers if isinstance(linear, LoraLinear)]
        for name, change in self._variants(diagonals):
            if (self.seed, task.name, name) in measured(self.path):
                continue
            changed = [change(linear) for linear, _, _ in update]
            for (linear, _, _), (lora_a, lora_b) in zip(update, changed, strict=True):
                linear.factors.lora_a.copy_(lora_a)
                linear.factors.lora_b.copy_(lora_b)
            scores = self._scores(trainer, pl_module, task)
            for linear, lora_a, lora_b in update:
                linear.factors.lora_a.copy_(lora_a)
                linear.factors.lora_b.copy_(lora_b)
            entry = {"seed": self.seed, "task": task.name, "variant": name, **scores}
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(entry, flush=True)

    def _scores(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> dict[str, float]:
        datamodule: Any = trainer.datamodule
        names = [item.name for item in datamodule.tasks[: task.index + 1]]
        sets = [s for s in datamodule.evaluation_sets() if s.name in names or s.kind == "safety"]
        scores = {s.name: score_set(trainer, pl_module, s).score for s in sets}
        old = [scores[name] for name in names[:-1]]
        safety = [scores[s.name] for s in sets if s.kind == "safety"]
        return {
            "new": scores[names[-1]],
            "old": float(np.mean(old)) if old else float("nan"),
            "MASR": float(np.mean(safety)),
        }

    def _variants(self, task_diagonals: dict[str, Tensor]) -> Iterator[tuple[str, Change]]:
        yield "whole update", _factors
        yield "no update", lambda linear: _scaled(linear, 0.0)
        for factor in (0.9, 0.8, 0.7):
            yield f"{factor} x update", lambda linear, factor=factor: _scaled(linear, factor)
        for block in range(1, len(self.layers.block_modules) + 1):
            yield f"without block {block}", lambda linear, block=block: _scaled(linear, float(linear.layer != block))
        for kind in dict.fromkeys(linear.name.rsplit(".", 1)[-1] for linear in self.layers):
            yield f"without {kind}", lambda linear, kind=kind: _scaled(linear, float(not linear.name.endswith(kind)))

        def focus(linear: LoraLinear, size: int) -> tuple[Tensor, Tensor]:
            diagonals = [one[linear.name] for one in (self._safety[size], task_diagonals)]
            epsilon, zeta = F.update_focus(linear.after(), diagonals, "columns")
            return epsilon, zeta

        def hpa(linear: LoraLinear, percent: float | None, size: int) -> tuple[Tensor, Tensor]:
            share = F.retention_percent(linear.layer, len(self.layers.block_modules)) if percent is None else percent
            return _without(linear, F.retained_columns(*focus(linear, size), share))

        def best(linear: LoraLinear, percent: float, how: str) -> tuple[Tensor, Tensor]:
            safety, task = focus(linear, max(SAFETY_SAMPLES))
            score = {"safety focus": safety, "safety focus / task focus": safety / task.clamp(min=1e-30)}.get(how)
            if score is None:
                score = torch.rand(len(safety), generator=torch.Generator().manual_seed(self.seed))
            kept = torch.zeros(len(score), dtype=torch.bool, device=safety.device)
            kept[score.topk(int(percent * len(score) / 100 + 0.5)).indices] = True
            return _without(linear, kept)

        for size in SAFETY_SAMPLES:
            yield f"HPA 5 to 15 %, {size} safety samples", lambda x, size=size: hpa(x, None, size)
            yield f"HPA 20 %, {size} safety samples", lambda x, size=size: hpa(x, 20.0, size)
        for how in ("random columns", "safety focus", "safety focus / task focus"):
            for percent in (10.0, 20.0):
                yield f"{percent:.0f} %, {how}", lambda x, how=how, percent=percent: best(x, percent, how)


def _factors(linear: LoraLinear) -> tuple[Tensor, Tensor]:
    return linear.factors.lora_a.detach().clone(), linear.factors.lora_b.detach().clone()


def _scaled(linear: LoraLinear, factor: float) -> tuple[Tensor, Tensor]:
    lora_a, lora_b = _factors(linear)
    return lora_a, lora_b * factor


def _without(linear: LoraLinear, columns: Tensor) -> tuple[Tensor, Tensor]:
    lora_a, lora_b = _factors(linear)
    return lora_a * ~columns, lora_b


def measured(path: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """(seed, task, variant) -> the line of the file; a torn last line is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["seed"], entry["task"], entry["variant"]] = entry
    return found


def table(path: Path) -> str:
    """Markdown: each variant's means over seeds and tasks, in percent."""
    entries = list(measured(path).values())
    lines = ["| what is kept of the update | new task | earlier tasks | MASR |", "|---|---|---|---|"]
    for variant in dict.fromkeys(entry["variant"] for entry in entries):
        rows = [entry for entry in entries if entry["variant"] == variant]
        means = [100 * float(np.nanmean([row[key] for row in rows])) for key in ("new", "old", "MASR")]
        lines.append(f"| {variant} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", nargs="+", default=list(TASK_NAMES), choices=TASK_NAMES)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "variants.jsonl"
    for seed in arguments.seeds:
        fit_nano(seed, [UpdateVariants(path, seed, arguments.tasks)], arguments.output / f"seed_{seed}")
    print(table(path))


if __name__ == "__main__":
    main()
