"""The base of baselines that edit single weights the optimal-brain-surgeon way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.calibrator import CalibratedCallback
from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion


class SurgeonFusion(TaskEndFusion, CalibratedCallback):
    """Makes each layer's weight from those before and after the task and the Hessian of the layer's inputs.

    Layers that are fed the same tensor share one factorisation. The results of all layers are held in host memory
    until the calibration pass is over.
    """

    @abstractmethod
    def operate(self, before: Tensor, after: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Make the weight that is kept.

        Args:
            before: weight before the task, ``(out_features, in_features)``.
            after: weight as trained, fp32, same shape.
            factor: upper Cholesky factor of the inverse Hessian, ``(in_features, in_features)``, float64.

        Returns:
            The weight, same shape, and the boolean mask of the entries that keep the tuned value.
        """

    def operate_all(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        task: CurrentTask,
        batches: Sequence[Any],
        what: str,
        before_task: bool,
    ) -> None:
        """Calibrate on ``batches``, write every layer's new weight and record a ``fusion`` event for each.

        Args:
            batches: the calibration batches on the device.
            what: their name in the progress bar.
            before_task: calibrate through the model from before the task instead of the tuned one.
        """
        linears = {linear.name: linear for linear in self.linears}
        results: dict[str, tuple[Tensor, float]] = {}
        with ExitStack() as all_layers:
            put_back = {name: all_layers.enter_context(ExitStack()) for name in linears}

            def enter(name: str) -> None:
                anchor = self.anchors.get(name)
                put_back[name].enter_context(linears[name].put_back(anchor) if before_task else nullcontext())

            def visit(accumulators: Mapping[str, F.HessianAccumulator]) -> None:
                factors: dict[int, Tensor] = {}
                # The pass runs under the trainer's autocast, which would round the merged LoRA weight.
                with torch.autocast(pl_module.device.type, enabled=False):
                    for name, accumulator in accumulators.items():
                        if id(accumulator) not in factors:
                            factors[id(accumulator)] = F.surgeon_factor(accumulator.hessian())
                        linear, factor = linears[name], factors[id(accumulator)]
                        put_back[name].close()  # the trained weight, for as long as it is read
                        before = linear.weight_before(self.anchors.get(name))
                        weight, kept = self.operate(before, linear.weight_after(), factor.to(before.device))
                        results[name] = weight.to("cpu", copy=True), float(kept.double().mean())
                        enter(name)

            for name in linears:
                enter(name)
            self.visit_hessians(trainer, pl_module, batches, what, visit)
        self.starts_writing("fusing")
        for linear in self.linears:
            weight, kept_share = results.pop(linear.name)
            linear.write_(weight)
            self.record(
                trainer,
                "fusion",
                step=task.index,
                task=task.name,
                layer=linear.layer,
                module=linear.name,
                kept_share=kept_share,
            )
