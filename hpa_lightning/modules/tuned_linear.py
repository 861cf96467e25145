"""Handles on the tuned linear layers: one interface for LoRA layers and plain weights, whole or sharded.

A handle knows which tensors belong to one linear layer, before and after the task, and how a result is written there.
What a method computes is a function on these tensors; a handle knows no method.

Where a weight's rows are spread over processes (FSDP2), ``local=True`` gives each process its own rows and costs no
communication; otherwise the tensors are gathered, one layer at a time. All processes have to make the same calls then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpa_lightning import functional as F
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.fsdp import assign_, check_rows_sharded, full_tensor, local_tensor, rows_like
from hpa_lightning.modules.lora import LoraFactors, check_own_bases, lora_factors


class TunedLinear(ABC):
    """One linear layer under tuning.

    Attributes:
        name: qualified name of the module inside the root it was found in.
        layer: 1-based index of its decoder block.
        name_in_blocks: its name within the list of decoder blocks (``0.self_attn.q_proj``): the same whatever the
            model is wrapped in.
        module: the module whose first input is the layer's input X, ``(..., in_features)``.
        anchor: the weight before the task, sharded as the weight is, where training changes the weight itself and it
            was kept (:meth:`keep`); ``None`` with LoRA.
    """

    def __init__(self, name: str, layer: int, module: nn.Module, name_in_blocks: str) -> None:
        self.name = name
        self.layer = layer
        self.name_in_blocks = name_in_blocks
        self.module = module
        self.anchor: Tensor | None = None

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The layer's dense weight, ``(out_features, in_features)``; with LoRA the frozen one."""

    @property
    @abstractmethod
    def trained(self) -> Tensor:
        """The trained tensor whose second dimension runs over the layer's input columns: the weight, or LoRA's A."""

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.weight.shape[1]

    @abstractmethod
    def keep(self) -> None:
        """Keep a copy of the weight as it is, as the one before the task; with LoRA the base weight stays anyway."""

    def place(self, anchor: Tensor) -> None:
        """Take the weight before the task, whole, from a checkpoint."""
        self.anchor = rows_like(anchor.to(self.weight.device), self.weight)

    @abstractmethod
    def before(self, local: bool = False) -> Tensor:
        """The weight before the task, ``(out_features, in_features)``; not to be changed.

        Args:
            local: this process's rows alone.
        """

    @abstractmethod
    def after(self, local: bool = False) -> Tensor | F.LoraUpdate:
        """What training has made: the weight in its own dtype, or the adapter on the weight before the task.

        Args:
            local: this process's rows of the weight, or of B, alone.
        """

    def update(self) -> Tensor | F.LoraUpdate:
        """What training has added to the weight before the task: dense, fp32, or the adapter."""
        after = self.after()
        return after if isinstance(after, F.LoraUpdate) else F.dense_update(self.before(), after)

    @abstractmethod
    def dense_after(self) -> Tensor:
        """The whole weight as trained so far, fp32, ``(out_features, in_features)``; not to be changed."""

    @abstractmethod
    def origin(self) -> Tensor | None:
        """This process's rows of what :attr:`trained` is where there is no update; ``None`` where that is 0 (LoRA)."""

    def is_adapted(self) -> bool:
        """Whether an adapter holds an update on this process; never without one."""
        return False

    @abstractmethod
    def has_moved(self) -> bool:
        """Whether this process's rows differ from those before the task; taken for granted where none were kept."""

    @abstractmethod
    def write_(self, weight: Tensor, local: bool = False) -> None:
        """Make ``weight`` the layer's, in one cast; with LoRA in the base, leaving an empty adapter (B = 0).

        Args:
            weight: ``(out_features, in_features)``; may be the tensor that is written to.
            local: it holds this process's rows alone.
        """

    @abstractmethod
    def written(self) -> tuple[Tensor, ...]:
        """This process's rows of the tensors that :meth:`write_` changes."""

    @abstractmethod
    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the layer computes with the weight before the task; afterwards it is as it was."""


class FullLinear(TunedLinear):
    """A linear layer whose whole weight is trained."""

    module: nn.Linear

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def trained(self) -> Tensor:
        return self.module.weight

    def keep(self) -> None:
        self.anchor = self.weight.detach().clone()

    def before(self, local: bool = False) -> Tensor:
        return local_tensor(self._kept()) if local else full_tensor(self._kept())

    def after(self, local: bool = False) -> Tensor:
        weight = self.weight.detach()
        return local_tensor(weight) if local else full_tensor(weight)

    def dense_after(self) -> Tensor:
        return self.after().float()

    def origin(self) -> Tensor:
        return self.before(local=True)

    def has_moved(self) -> bool:
        return self.anchor is None or not torch.equal(self.after(local=True), self.before(local=True))

    @torch.no_grad()
    def write_(self, weight: Tensor, local: bool = False) -> None:
        assign_(local_tensor(self.weight) if local else self.weight, weight)

    def written(self) -> tuple[Tensor, ...]:
        return (self.after(local=True),)

    @contextmanager
    def restored(self) -> Iterator[None]:
        weight = self.after(local=True)
        trained = weight.clone()
        weight.copy_(self.before(local=True))
        try:
            yield
        finally:
            weight.copy_(trained)

    def _kept(self) -> Tensor:
        if self.anchor is None:
            raise ValueError(f"{self.name}: full-parameter tuning needs the weight before the task; it was not kept.")
        return self.anchor


class LoraLinear(TunedLinear):
    """A linear layer tuned through LoRA: its frozen base weight is the weight before the task."""

    @property
    def factors(self) -> LoraFactors:
        """The layer's current LoRA tensors."""
        factors = lora_factors(self.module, self.name)
        assert factors is not None, f"{self.name} was a LoRA layer when it was found"
        return factors

    @property
    def weight(self) -> Tensor:
        return self.factors.weight

    @property
    def trained(self) -> Tensor:
        return self.factors.lora_a

    def keep(self) -> None:
        pass

    def before(self, local: bool = False) -> Tensor:
        weight = self.weight.detach()
        return local_tensor(weight) if local else full_tensor(weight)

    def after(self, local: bool = False) -> F.LoraUpdate:
        f = self.factors
        b = f.lora_b.detach()
        return F.LoraUpdate(full_tensor(f.lora_a.detach()), local_tensor(b) if local else full_tensor(b), f.scaling)

    @torch.no_grad()
    def dense_after(self) -> Tensor:
        adapter = self.after()
        return self.before().float() + F.lora_update(adapter.lora_a, adapter.lora_b, adapter.scaling)

    def origin(self) -> None:
        return None

    def is_adapted(self) -> bool:
        return bool(local_tensor(self.factors.lora_b.detach()).any())

    def has_moved(self) -> bool:
        return self.is_adapted()

    @torch.no_grad()
    def write_(self, weight: Tensor, local: bool = False) -> None:
        f = self.factors
        assign_(local_tensor(f.weight) if local else f.weight, weight)
        local_tensor(f.lora_b).zero_()

    def written(self) -> tuple[Tensor, ...]:
        f = self.factors
        return local_tensor(f.weight.detach()), local_tensor(f.lora_b.detach())

    @contextmanager
    def restored(self) -> Iterator[None]:
        b = local_tensor(self.factors.lora_b.detach())
        trained = b.clone()
        b.zero_()
        try:
            yield
        finally:
            b.copy_(trained)


def find_tuned_linears(
    root: nn.Module, blocks: str | None = None, target_modules: Sequence[str] | None = None
) -> tuple[list[nn.Module], list[TunedLinear]]:
    """Find the linear layers under tuning in the decoder blocks of ``root``.

    A LoRA layer is taken as such; a plain ``nn.Linear`` is taken if its weight is trained.

    Args:
        root: any module, usually the LightningModule.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the layers to take (``["q_proj", "down_proj"]``); all of them when ``None``.

    Returns:
        The decoder blocks in order, and the handles in the order of the blocks.

    Raises:
        ValueError: no block list, no tuned layer, or a name in ``target_modules`` that no tuned layer has; a LoRA layer
            whose base weight is trained, or another module's, too; a weight that is computed from other parameters.
    """
    prefix, modules = find_decoder_blocks(root, blocks)
    handles: list[TunedLinear] = []
    bases: dict[str, nn.Parameter] = {}
    for index, block in enumerate(modules, start=1):
        inside_adapter: set[int] = set()
        for name, module in block.named_modules():
            if id(module) in inside_adapter:
                continue
            in_blocks = f"{index - 1}.{name}"
            qualified = f"{prefix}.{in_blocks}"
            if (factors := lora_factors(module, qualified)) is not None:
                if factors.weight.requires_grad:
                    raise ValueError(
                        f"{qualified}: the base weight is trained beside its adapter; expected it frozen, since the "
                        "adapter is taken for all that changes. Freeze it, or train the layer without an adapter."
                    )
                bases[qualified] = factors.weight
                inside_adapter.update(id(inner) for inner in module.modules())
                handles.append(LoraLinear(qualified, index, module, in_blocks))
            elif isinstance(module, nn.Linear) and module.weight.requires_grad:
                if "weight" not in module._parameters:
                    raise ValueError(
                        f"{qualified}: its weight is computed from other parameters (a parametrization, weight norm, "
                        "pruning), so that what is written into it would be lost; expected a plain one. Make it one "
                        "before the fit: torch.nn.utils.parametrize.remove_parametrizations, prune.remove."
                    )
                handles.append(FullLinear(qualified, index, module, in_blocks))
    check_own_bases(root, bases)
    if target_modules is not None:
        names = {handle.name.rsplit(".", 1)[-1] for handle in handles}
        unknown = sorted(set(target_modules) - names)
        if unknown:
            raise ValueError(
                f"target_modules names {unknown}, which no tuned layer of {prefix!r} is; there are {sorted(names)}."
            )
        handles = [handle for handle in handles if handle.name.rsplit(".", 1)[-1] in set(target_modules)]
    if not handles:
        raise ValueError(
            f"no tuned linear layer in {prefix!r} of {type(root).__name__}: every weight there is frozen and there is "
            "no LoRA layer. Make the linear layers of the language model trainable, or add LoRA, before training."
        )
    return modules, handles


def check_linears(linears: Sequence[TunedLinear]) -> None:
    """Refuse parameter layouts whose columns cannot be addressed.

    Raises:
        ValueError: a weight shared by two layers, or a tensor that is flattened or sharded other than by rows.
    """
    seen: dict[int, str] = {}
    for linear in linears:
        parameter = linear.trained
        other = seen.setdefault(id(parameter), linear.name)
        if other != linear.name:
            raise ValueError(f"{linear.name} and {other} share one weight; expected each layer to own its weight.")
        if parameter.ndim != 2:
            raise ValueError(
                f"{linear.name}: its parameter has {parameter.ndim} dimensions; expected two. Flattened parameters "
                "(FSDP1, ZeRO-3) are not supported; FSDP2 is (ModelParallelStrategy)."
            )
        for tensor in (parameter, linear.weight):
            check_rows_sharded(linear.name, tensor)
