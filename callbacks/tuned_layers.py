"""The part of a callback that knows the tuned linear layers and their weights before the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.modules.fsdp import cpu_state, is_sharded, reshard_
from hpa_lightning.modules.tuned_linear import TunedLinear, check_linears, find_tuned_linears
from hpa_lightning.trainer_attributes import is_dev_run
from hpa_lightning.values import first_of


class TunedLayers(Part):
    """The linear layers under tuning in the decoder blocks, as handles; iterating gives them in the blocks' order.

    State: ``"anchors"``, the weights before the task where training changes them (full-parameter tuning only).

    Args:
        owner: the callback.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.
        first_block: decoder block from which on layers are treated, counted from 1.
        names_untreated: warn of matrices that are trained and that the callback does not treat.

    Attributes:
        linears: the handles; empty between tasks.
        block_modules: the decoder blocks.
    """

    follows: Mapping[str, str] = {name: name for name in ("blocks", "target_modules", "first_block")}

    def __init__(
        self,
        owner: TaskCallback,
        blocks: str | None = None,
        target_modules: list[str] | None = None,
        first_block: int = 1,
        names_untreated: bool = True,
    ) -> None:
        super().__init__(owner)
        self.blocks = blocks
        self.target_modules = target_modules
        self.first_block = first_block
        self.names_untreated = names_untreated
        self.linears: list[TunedLinear] = []
        self.block_modules: list[nn.Module] = []
        self._saved: dict[str, Tensor] = {}  # anchors out of a checkpoint, until the layers are found
        self._frozen: list[tuple[str, nn.Parameter]] = []  # the blocks' matrices that the task does not train

    def __iter__(self) -> Iterator[TunedLinear]:
        return iter(self.linears)

    def __len__(self) -> int:
        return len(self.linears)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.precision == "16-true":
            raise MisconfigurationException(
                f"{self.caller} does not support precision='16-true': float16 weights have no loss scaling, "
                "and Hessians of float16 activations overflow. Use 'bf16-true' or '16-mixed'."
            )
        parameters = list(pl_module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise MisconfigurationException(
                f"{self.caller}: every parameter of {type(pl_module).__name__} is frozen (requires_grad=False) "
                "and there is nothing to tune. Unfreeze the linear layers of the language model, or add LoRA."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.find(pl_module)  # what cannot be treated is refused before anything is evaluated or trained
        if self.names_untreated:
            warn_of_untreated(pl_module, self.linears, self.caller)
        self.clear()

    def find(self, pl_module: L.LightningModule) -> None:
        """Find the decoder blocks and the tuned linear layers of ``pl_module``."""
        reshard_(pl_module)
        self.block_modules, linears = find_tuned_linears(pl_module, self.blocks, self.target_modules)
        self.linears = [linear for linear in linears if linear.layer >= self.first_block]
        if not self.linears:
            raise ValueError(
                f"first_block is {self.first_block}; the last decoder block with tuned layers is {linears[-1].layer}."
            )
        check_linears(self.linears)
        inside = {id(parameter) for block in self.block_modules for parameter in block.parameters()}
        self._frozen = [
            (name, parameter)
            for name, parameter in pl_module.named_parameters()
            if id(parameter) in inside and not parameter.requires_grad and parameter.ndim > 1
        ]

    def on_before_step(self) -> None:
        if unfrozen := [name for name, parameter in self._frozen if parameter.requires_grad]:
            raise MisconfigurationException(
                f"{self.caller}: frozen when the task began, and trained now, without it: {first_of(unfrozen)}. Let a "
                "task train the same layers from its start to its end; a callback that unfreezes layers by and by "
                "(Lightning's BaseFinetuning, LISA) cannot stand beside this one."
            )

    def on_task_trained(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Name trained layers that have not moved; in the same words from every callback, so that it shows once."""
        if is_dev_run(trainer):
            return  # its one step may be a warm-up's, of rate 0
        still = [linear.name for linear in self.linears if linear.trained.requires_grad and not linear.has_moved()]
        if trainer.world_size > 1 and is_sharded(pl_module):  # each process has seen its own rows
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, still)
            still = [name for name in still if all(name in one for one in everyone)]
        if still:
            rank_zero_warn(
                f"Task {task.index} ({task.name}): {len(still)} of {len(self.linears)} tuned layers are as they were "
                f"before it: {first_of(still)}. No gradient reached them (checkpointing with use_reentrant=True behind "
                "frozen embeddings, experts without a token), their steps were too small for the weights' dtype, or "
                "all of their columns or directions are held."
            )

    def keep_weights(self) -> None:
        """Keep the weights as they are, as those before the task; with LoRA the base weights stay anyway.

        Adapters that hold an update already are told: it cannot be told from this task's.
        """
        for linear in self.linears:
            linear.keep()
        adapted = [linear.name for linear in self.linears if linear.is_adapted()]
        if adapted:
            rank_zero_warn(
                f"{self.caller}: the adapters of {len(adapted)} layers hold an update already when the task begins "
                f"({', '.join(adapted[:3])}{', ...' if adapted[3:] else ''}), an earlier task's or a start's such as "
                f"PiSSA's. It counts as part of this task's: what {self.caller} takes from an update, it takes from "
                "that, too. Merge it into the base weights first (peft's merge_and_unload and a new adapter; "
                "SequentialTuning merges at every task's end)."
            )

    def resume(self, pl_module: L.LightningModule) -> None:
        """Find the layers, and give them the weights before the task that the checkpoint holds."""
        self.find(pl_module)
        self.place(self._saved)
        self._saved = {}

    def place(self, anchors: Mapping[str, Tensor]) -> None:
        """Give the layers their weights before the task: name -> whole weight.

        Raises:
            ValueError: one is not tuned.
        """
        by_name = {linear.name: linear for linear in self.linears}
        if missing := sorted(set(anchors) - set(by_name)):
            raise ValueError(
                f"{self.caller}: the checkpoint holds the weights before the task of {first_of(missing)}, which are "
                "not tuned now; expected the layers that were (requires_grad). A callback that freezes layers on a "
                "resume (Lightning's BaseFinetuning) has to leave those as they were."
            )
        for name, anchor in anchors.items():
            by_name[name].place(anchor)

    def clear(self) -> None:
        """Let go of the layers and of their weights before the task."""
        self.linears, self._frozen = [], []

    @property
    def anchors(self) -> dict[str, Tensor]:
        """name -> weight before the task, sharded as the weight is; empty with LoRA, whose base weights stay."""
        return {linear.name: linear.anchor for linear in self.linears if linear.anchor is not None}

    def restored(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """What a checkpoint holds for every layer, on the layers' devices.

        Raises:
            ValueError: it holds nothing for some layer.
        """
        missing = sorted(linear.name for linear in self.linears if linear.name not in tensors)
        if missing:
            raise ValueError(
                f"the checkpoint holds no {what} for {missing[:3]}; it was written while other layers were tuned."
            )
        return self.on_devices({linear.name: tensors[linear.name] for linear in self.linears})

    def on_devices(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of layers, from a checkpoint, each on its layer's device."""
        devices = {linear.name: linear.weight.device for linear in self.linears}
        return {name: tensor.to(devices[name]) for name, tensor in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"anchors": {**self._saved, **cpu_state(self.anchors)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict.get("anchors", {}))


def warn_of_untreated(pl_module: L.LightningModule, linears: Sequence[TunedLinear], caller: str) -> None:
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
        rank_zero_warn(
            f"{caller} treats {len(linears)} linear layers of the decoder blocks. {len(names)} other layers are "
            f"trained and stay as training leaves them, without its protection: {first_of(names, 4)}. Freeze them if "
            "safety must not depend on them."
        )
