"""What fusions that edit single weights the optimal-brain-surgeon way share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.results.events import FusionEvent

_KNOBS = "Its settings are out of range for this model; `kept_share` in the result file tells of each layer."


def fuse_by_surgeon(
    calibrator: Calibrator,
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    task: CurrentTask,
    batches: Sequence[Any],
    what: str,
    fused: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    before_task: bool,
) -> None:
    """Make each layer's weight from those before and after the task and the Hessian of the layer's inputs; write it.

    Layers that are fed the same tensor share one factorisation. The results of all layers are held in host memory
    until the calibration pass is over. A ``fusion`` event is recorded for each layer. It warns of a task of which all
    layers keep everything, or nothing.

    Args:
        calibrator: of the callback, which is to be in its task's end.
        trainer, pl_module, task: of the fit.
        batches: the calibration batches on the device.
        what: their name in the progress bar.
        fused: weight before the task ``(out_features, in_features)``, weight as trained, fp32, upper Cholesky factor of
            the inverse Hessian, float64 -> the weight that is kept, and the boolean mask of the entries that keep the
            tuned value.
        before_task: calibrate through the model from before the task instead of the tuned one.
    """
    linears = {linear.name: linear for linear in calibrator.layers}
    results: dict[str, tuple[Tensor, float]] = {}
    with ExitStack() as all_layers:
        restored = {name: all_layers.enter_context(ExitStack()) for name in linears}

        def enter(name: str) -> None:
            restored[name].enter_context(linears[name].restored() if before_task else nullcontext())

        def visit(accumulators: Mapping[str, F.HessianAccumulator]) -> None:
            factors: dict[int, Tensor] = {}
            # The pass runs under the trainer's autocast, which would round the merged LoRA weight.
            with torch.autocast(pl_module.device.type, enabled=False):
                for name, accumulator in accumulators.items():
                    if id(accumulator) not in factors:
                        factors[id(accumulator)] = F.surgeon_factor(accumulator.hessian())
                    linear, factor = linears[name], factors[id(accumulator)]
                    restored[name].close()  # the trained weight, for as long as it is read
                    before = linear.before()
                    weight, kept = fused(before, linear.dense_after(), factor.to(before.device))
                    results[name] = weight.to("cpu", copy=True), float(kept.double().mean())
                    enter(name)

        for name in linears:
            enter(name)
        calibrator.visit_hessians(trainer, pl_module, batches, what, visit)
    callback = calibrator.owner
    _warn_of_extremes([kept for _, kept in results.values()], type(callback).__name__, task)
    callback.starts_writing("fusing")
    for linear in calibrator.layers:
        weight, kept_share = results.pop(linear.name)
        linear.write_(weight)
        callback.record(
            trainer,
            FusionEvent(
                step=task.index,
                task=task.name,
                layer=linear.layer,
                module=linear.name,
                kept_share=kept_share,
            ),
        )


def _warn_of_extremes(kept: Sequence[float], method: str, task: CurrentTask) -> None:
    where = f"{method}: after task {task.name!r}"
    layers = f"of all {len(kept)} linear layers"
    if kept and min(kept) == 1.0:
        rank_zero_warn(f"{where} every entry {layers} keeps its tuned value: the method has changed nothing. {_KNOBS}")
    elif kept and max(kept) == 0.0:
        rank_zero_warn(f"{where} no entry {layers} keeps its tuned value: the task is taken back. {_KNOBS}")
