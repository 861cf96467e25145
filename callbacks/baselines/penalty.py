"""The base of baselines that add a penalty on the adapters to the loss."""

from __future__ import annotations

from abc import abstractmethod

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from hpa_lightning.callbacks.task import CurrentTask
from hpa_lightning.callbacks.tuning import LinearsCallback
from hpa_lightning.modules.linears import LoraLinear


class AdapterPenalty(LinearsCallback):
    """Adds the gradient of a penalty on the LoRA factors right before every optimizer step.

    That is the same as adding the penalty to the loss, for any LightningModule: accumulated batches count it once,
    clipping sees it, gradients are unscaled in fp16, and every process of DDP adds the same. The penalty is computed
    in fp32 whatever the precision, and logged as ``train/penalty``.

    Hooks: task start, ``on_before_optimizer_step``. Strategies: one device, DDP.
    """

    adapters: list[LoraLinear]

    @abstractmethod
    def penalty(self) -> Tensor | None:
        """The penalty of the current adapters, a differentiable 0-dim tensor; ``None`` while there is none."""

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._find_adapters(pl_module)

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._find_adapters(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        with torch.enable_grad(), torch.autocast(pl_module.device.type, enabled=False):
            penalty = self.penalty()
            if penalty is None:
                return
            penalty.backward()
        self.log("train/penalty", penalty.detach())

    def _find_adapters(self, pl_module: L.LightningModule) -> None:
        self.find_linears(pl_module)
        self.adapters = [linear for linear in self.linears if isinstance(linear, LoraLinear)]
        if len(self.adapters) < len(self.linears):
            raise MisconfigurationException(
                f"{type(self).__name__} is defined on LoRA's factors; {len(self.linears) - len(self.adapters)} of the "
                f"{len(self.linears)} tuned layers are tuned in full. Add LoRA (lora: in MLLMModule)."
            )
