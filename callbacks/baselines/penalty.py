"""The base of baselines that add a penalty on the adapters to the loss."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.trainer_checks import require_automatic_optimization
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.modules.fsdp import cpu_state
from hpa_lightning.modules.lora import LoraFactors
from hpa_lightning.modules.tuned_linear import LoraLinear


class AdapterPenalty(TaskCallback):
    """Makes every adapter pay for what it shares with those of the earlier tasks.

    The penalty's gradient, in closed form, is added to ``.grad`` right before the optimizer step. That is the same as
    adding the penalty to the loss, for any LightningModule: accumulated batches count it once, clipping sees it, the
    fp16 loss scale is respected, every process of DDP adds the same after its gradients were averaged. It is computed
    in fp32 whatever the precision, one layer at a time, and logged as ``train/penalty``.

    Every task needs a fresh adapter (B = 0): :class:`SequentialTuning` merges the trained one into the base weights and
    restarts it, which is the same function as an earlier adapter that is frozen and kept beside the new one.

    Hooks: task start, ``on_before_optimizer_step``, task end (before anything is fused or merged).
    State: what each adapter's earlier tasks left (``history``). Strategies: one device, DDP (FSDP2 is refused).

    Args:
        weight: factor of the penalty; 0 only measures it.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Attributes:
        history: layer name -> what ``remember`` made of the earlier adapters; empty during the first task.
    """

    end_order: ClassVar[int] = EndPhase.REMEMBERING
    refuses_sharding = "it needs whole adapters at every step, and fully_shard spreads them over the processes"

    def __init__(self, weight: float, blocks: str | None = None, target_modules: list[str] | None = None) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self, blocks, target_modules))
        self.blocks, self.target_modules = blocks, target_modules
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: weight is {weight}; expected a finite number of at least 0.")
        self.weight = weight
        self.history: dict[str, Tensor] = {}
        self._adapters: list[LoraLinear] = []

    @abstractmethod
    def remember(self, factors: LoraFactors, earlier: Tensor | None) -> Tensor:
        """Return a layer's history after a task: ``earlier`` (``None`` after the first) and the trained adapter."""

    @property
    def penalizes_first_task(self) -> bool:
        """Whether the first task, which has no earlier adapters, pays something too."""
        return False

    @abstractmethod
    def term(self, factors: LoraFactors, earlier: Tensor | None) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """Return one layer's penalty, 0-dim, and its gradients: ``[(parameter, gradient), ...]``.

        ``earlier`` is the layer's history, ``None`` in the first task.
        """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            require_automatic_optimization(pl_module, self)

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._find_adapters(pl_module)
        trained = [linear.name for linear in self._adapters if bool(linear.factors.lora_b.any())]
        if self.history and trained:
            raise MisconfigurationException(
                f"{type(self).__name__}: {len(trained)} adapters ({trained[0]}, ...) continue from an earlier task "
                "and would be penalized for what they learnt there. Merge and restart them between tasks; "
                "SequentialTuning does it over a stream."
            )

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self._find_adapters(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._adapters or not (self.history or self.penalizes_first_task):
            return
        # A fused optimizer unscales by itself: with fp16 its gradients are still multiplied by the loss scale here.
        unscales = getattr(optimizer, "_step_supports_amp_scaling", False)
        scaler = getattr(trainer.precision_plugin, "scaler", None) if unscales else None
        values = []
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            for linear in self._adapters:
                value, gradients = self.term(linear.factors, self.history.get(linear.name))
                values.append(value)
                for parameter, gradient in gradients:
                    _add_gradient_(parameter, gradient if scaler is None else scaler.scale(gradient))
            pl_module.log("train/penalty", torch.stack(values).sum())

    @torch.no_grad()
    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        for linear in self._adapters:
            history = self.remember(linear.factors, self.history.get(linear.name))
            if trainer.world_size > 1:
                history = trainer.strategy.broadcast(history.cpu()).to(history.device)
            self.history[linear.name] = history
        self._adapters = []
        self.layers.clear()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "history": cpu_state(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.history = dict(state_dict["history"])

    def _find_adapters(self, pl_module: L.LightningModule) -> None:
        self.layers.find(pl_module)
        self._adapters = [linear for linear in self.layers if isinstance(linear, LoraLinear)]
        if len(self._adapters) < len(self.layers):
            raise MisconfigurationException(
                f"{type(self).__name__} is defined on LoRA's factors; {len(self.layers) - len(self._adapters)} of the "
                f"{len(self.layers)} tuned layers are tuned in full. Add LoRA (lora: in MLLMModule)."
            )
        devices = {linear.name: linear.weight.device for linear in self._adapters}
        if self.history and self.history.keys() != devices.keys():
            raise ValueError(
                f"{type(self).__name__}: the earlier tasks tuned other layers: "
                f"{sorted(self.history.keys() ^ devices.keys())[:3]} are not in both; expected the same in all tasks."
            )
        self.history = {name: tensor.to(devices[name]) for name, tensor in self.history.items()}


def _add_gradient_(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to ``.grad`` as autograd would, without waking the hooks that DDP has on it."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad.add_(gradient)
