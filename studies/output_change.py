"""The picture of a method's card: what a task's update does to safety inputs and to the task's, in every layer.

One task of `nano` is learnt twice, by sequential tuning and with null-space projection. At its end, before the update D
is merged into the weights W, the model answers test questions: of the task, and harmful ones that calibration has not
seen. For every token and tuned layer |D x| / |W x| says how much the update changes what the layer makes of input x.

    python studies/output_change.py --output runs/output_change --figure docs/figures/output-change.png

Prints medians and shares of tokens, and draws the distributions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from fitting import fit_nano
from torch import Tensor, nn

from hpa_lightning.callbacks import CalibrationSettings, NullSpaceProjection
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import score_set
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.data.nano.lexicon import TASK_NAMES
from hpa_lightning.modules.tuned_linear import TunedLinear
from hpa_lightning.report.style import COLOURS, new_figure, save_figure

EDGES = np.logspace(-4, 1, 101)
METHODS = {"sequential": "Sequential tuning", "null-space": "HUSH: null-space projection"}


class OutputChange(TaskCallback):
    """Writes, at the task's end, how much the update changes the layers' outputs on each evaluation set.

    Args:
        path: the file of results, JSON: set -> score and counts of tokens and layers between ``EDGES``.
    """

    end_order: ClassVar[int] = EndPhase.REMEMBERING

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        self.path = path

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        datamodule: Any = trainer.datamodule
        found: dict[str, dict[str, Any]] = {}
        for one in datamodule.evaluation_sets():
            if one.kind == "over_refusal":
                continue
            counts = np.zeros(len(EDGES) + 1, dtype=np.int64)
            with self._watched(counts):
                score = score_set(trainer, pl_module, one).score
            found[one.name] = {"kind": one.kind, "score": score, "counts": counts.tolist()}
        self.path.write_text(json.dumps(found))
        self.layers.clear()

    @contextmanager
    def _watched(self, counts: np.ndarray) -> Iterator[None]:
        """Inside, every input of every tuned layer is counted by what the update makes of it."""

        def look(linear: TunedLinear, update: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0].flatten(0, -2).float()
            changed = (tokens @ update.T).norm(dim=1)
            ratio = changed / (tokens @ linear.before().float().T).norm(dim=1).clamp(min=1e-12)
            counts[:] += np.bincount(np.searchsorted(EDGES, ratio.cpu().numpy()), minlength=len(counts))

        handles = []
        for linear in self.layers:
            update = (linear.dense_after() - linear.before()).float()
            handles.append(linear.module.register_forward_pre_hook(partial(look, linear, update)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def quantile(counts: list[int], share: float) -> float:
    """The value below which a share of what was counted lies, to the width of a bin."""
    below = np.cumsum(counts) / np.sum(counts)
    return float(np.append(EDGES, np.inf)[int(np.searchsorted(below, share))])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: score and |D x| / |W x| of each method and evaluation set, in percent."""
    lines = ["| method | inputs | score | median change | change of 9 in 10 tokens is below |", "|---|---|---|---|---|"]
    for method, sets in found.items():
        for name, one in sets.items():
            word = "attack success" if one["kind"] == "safety" else "correct"
            low, high = (100 * quantile(one["counts"], share) for share in (0.5, 0.9))
            lines.append(f"| {METHODS[method]} | {name} | {word} {100 * one['score']:.0f} | {low:.1f} | {high:.1f} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """The distributions as PNG: one panel for each method."""
    figure = new_figure(9.0, 3.2)
    axes = figure.subplots(1, len(found), sharex=True, sharey=True)
    for ax, (method, sets) in zip(axes, found.items(), strict=True):
        tasks = {name: one for name, one in sets.items() if one["kind"] != "safety"}
        safety = {name: one for name, one in sets.items() if one["kind"] == "safety"}
        for group, colour, label in (
            (tasks, COLOURS[0], "the task's questions"),
            (safety, COLOURS[1], "harmful requests"),
        ):
            counts = np.sum([one["counts"] for one in group.values()], axis=0)[1:-1]
            score = 100 * np.mean([one["score"] for one in group.values()])
            told = f"{label}: {score:.0f} % {'answered' if group is safety else 'correct'}"
            centres = 100 * np.sqrt(EDGES[:-1] * EDGES[1:])
            ax.fill_between(centres, counts / counts.sum(), color=colour, alpha=0.35, linewidth=0)
            ax.plot(centres, counts / counts.sum(), color=colour, linewidth=1.6, label=told)
        ax.set_xscale("log")
        ax.set_xlim(0.1, 150)
        ax.set_title(METHODS[method], loc="left")
        ax.set_xlabel("change of a layer's output, |D x| / |W x|, percent")
        ax.set_yticks([])
        ax.legend(loc="upper left", frameon=False)
    axes[0].set_ylabel("tokens and layers")
    axes[0].set_ylim(0, 1.35 * axes[0].dataLim.y1)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default=TASK_NAMES[0], choices=TASK_NAMES)
    parser.add_argument("--figure", type=Path, help="where to draw (default: OUTPUT/output-change.png)")
    arguments = parser.parse_args()
    found = {}
    for method in METHODS:
        folder = arguments.output / f"{arguments.task}_seed_{arguments.seed}" / method
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "output_change.json"
        if not path.is_file():
            callbacks: list[L.Callback] = [OutputChange(path)]
            if method == "null-space":
                callbacks.insert(0, NullSpaceProjection(calibration=CalibrationSettings(safety_samples=128)))
            fit_nano(arguments.seed, callbacks, folder, task_order=[arguments.task])
        found[method] = json.loads(path.read_text())
    print(table(found))
    draw(found, arguments.figure or arguments.output / "output-change.png")


if __name__ == "__main__":
    main()
