"""The base of callbacks that act on the tuned linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.modules.linears import TunedLinear, check_linears, find_tuned_linears
from hpa_lightning.modules.sharding import reshard_


class LinearsCallback(TaskCallback):
    """Finds the linear layers under tuning in the decoder blocks.

    Args:
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Attributes:
        linears: handles on the layers, in the order of the blocks; empty between tasks.

    Hooks: ``on_fit_start`` (layers that cannot be treated are refused).
    """

    names_untreated: ClassVar[bool] = True
    """Warn of matrices that are trained and that the callback does not treat."""

    def __init__(self, blocks: str | None = None, target_modules: list[str] | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.target_modules = target_modules
        self.linears: list[TunedLinear] = []
        self._blocks: list[nn.Module] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.precision == "16-true":
            raise MisconfigurationException(
                f"{type(self).__name__} does not support precision='16-true': float16 weights have no loss scaling, "
                "and Hessians of float16 activations overflow. Use 'bf16-true' or '16-mixed'."
            )
        parameters = list(pl_module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise MisconfigurationException(
                f"{type(self).__name__}: every parameter of {type(pl_module).__name__} is frozen (requires_grad=False) "
                "and there is nothing to tune. Unfreeze the linear layers of the language model, or add LoRA."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.find_linears(pl_module)  # what cannot be treated is refused before anything is evaluated or trained
        if self.names_untreated:
            tell_of_untreated(pl_module, self.linears, type(self).__name__)
        self.linears.clear()

    def find_linears(self, pl_module: L.LightningModule) -> None:
        """Find the decoder blocks and the tuned linear layers of ``pl_module``."""
        reshard_(pl_module)
        self._blocks, self.linears = find_tuned_linears(pl_module, self.blocks, self.target_modules)
        check_linears(self.linears)

    def take_anchors(self) -> dict[str, Tensor]:
        """Copies of the weights as they are, by layer; empty with LoRA, whose base weights stay."""
        return {linear.name: anchor for linear in self.linears if (anchor := linear.anchor()) is not None}

    def restored(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """What a checkpoint holds for every layer, on the layers' devices.

        Raises:
            ValueError: it holds nothing for some layer.
        """
        missing = sorted(linear.name for linear in self.linears if linear.name not in tensors)
        if missing:
            raise ValueError(
                f"the checkpoint holds no {what} for {missing[:3]}; it was written with other layers under tuning."
            )
        return self.on_devices({linear.name: tensors[linear.name] for linear in self.linears})

    def placed(self, anchors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Anchors from a checkpoint, each on its layer's device and sharded as its layer is."""
        by_name = {linear.name: linear for linear in self.linears}
        return {name: by_name[name].place(anchor) for name, anchor in anchors.items()}

    def on_devices(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of layers, from a checkpoint, each on its layer's device."""
        devices = {linear.name: linear.weight.device for linear in self.linears}
        return {name: tensor.to(devices[name]) for name, tensor in tensors.items()}


def tell_of_untreated(pl_module: L.LightningModule, linears: Sequence[TunedLinear], asker: str) -> None:
    """Warn once of the matrices that are trained outside the layers that a callback treats, by the modules' names.

    Vectors (norms, biases) are not named: every method leaves them alone.
    """
    treated = {id(parameter) for linear in linears for parameter in linear.module.parameters()}
    outside: dict[str, None] = {}
    for name, parameter in pl_module.named_parameters():
        if parameter.requires_grad and parameter.ndim > 1 and id(parameter) not in treated:
            module, adapter, _ = name.partition(".lora_")
            outside[f"{module} (LoRA)" if adapter else name.rpartition(".")[0]] = None
    if outside:
        names = list(outside)
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        rank_zero_warn(
            f"{asker} treats {len(linears)} linear layers of the decoder blocks. {len(names)} other layers are trained "
            f"and stay as training leaves them, without its protection: {listed}. Freeze them if safety must not "
            "depend on them."
        )
