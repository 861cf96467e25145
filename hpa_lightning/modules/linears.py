"""Handles on the tuned linear layers: one interface for LoRA layers and plain weights, whole or sharded.

A handle knows which tensors belong to one linear layer and calls the functional core on them. It holds no state: the
masks and the anchors (weights before the task) belong to the callback that made them.

Where a weight's rows are spread over processes (FSDP2), what runs at every optimizer step works on each process's own
rows, and what runs once for a task gathers one layer at a time. All processes have to make the same calls then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hpa_lightning import functional as F
from hpa_lightning.modules.adapters import LoraFactors, lora_factors
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.sharding import (
    assign_,
    check_rows_sharded,
    gather_all,
    own_rows,
    rows_like,
    sum_over_rows,
    whole,
)


class TunedLinear(ABC):
    """One linear layer under tuning.

    Attributes:
        name: qualified name of the module inside the root it was found in.
        layer: 1-based index of its decoder block.
        module: the module whose first input is the layer's input X, ``(..., in_features)``.
    """

    def __init__(self, name: str, layer: int, module: nn.Module) -> None:
        self.name = name
        self.layer = layer
        self.module = module

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The layer's dense weight, ``(out_features, in_features)``; with LoRA the frozen one."""

    @property
    @abstractmethod
    def column_parameter(self) -> Tensor:
        """The trained tensor whose second dimension runs over the layer's input columns."""

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.weight.shape[1]

    @abstractmethod
    def anchor(self) -> Tensor | None:
        """A copy of the weight as it is, sharded as it is; or ``None`` where the weight itself stays (LoRA)."""

    def place(self, anchor: Tensor) -> Tensor:
        """A whole anchor, out of a checkpoint, on the weight's device and sharded as the weight is."""
        return rows_like(anchor.to(self.weight.device), self.weight)

    @abstractmethod
    def weight_before(self, anchor: Tensor | None) -> Tensor:
        """The whole weight before the task, ``(out_features, in_features)``; not to be changed."""

    @abstractmethod
    def weight_after(self) -> Tensor:
        """The whole weight as trained so far, fp32, ``(out_features, in_features)``; not to be changed."""

    @abstractmethod
    def after(self) -> Tensor | F.LoraUpdate:
        """What training has made, whole: the weight in its own dtype, or the adapter on the weight before the task."""

    def update(self, anchor: Tensor | None) -> Tensor | F.LoraUpdate:
        """What training has added to the weight before the task, whole: dense, fp32, or the adapter."""
        after = self.after()
        return after if isinstance(after, F.LoraUpdate) else F.dense_update(self.weight_before(anchor), after)

    @abstractmethod
    def write_(self, weight: Tensor) -> None:
        """Make the whole ``weight`` the layer's; with LoRA in the base, leaving an empty adapter (B = 0)."""

    @abstractmethod
    def changed_by_fusion(self) -> tuple[Tensor, ...]:
        """This process's rows of the tensors that :meth:`write_` changes."""

    @abstractmethod
    @contextmanager
    def put_back(self, anchor: Tensor | None) -> Iterator[None]:
        """Inside, the layer computes with the weight before the task; afterwards it is as it was."""

    @abstractmethod
    def restore_columns_(self, anchor: Tensor | None, retained: Tensor) -> None:
        """Put the retained columns back to the weight before the task, bit for bit; no host synchronisation."""

    @classmethod
    @abstractmethod
    def projection(
        cls, linears: Sequence[Self], anchors: Sequence[Tensor | None], retained: Sequence[Tensor | None]
    ) -> Callable[[], object]:
        """Prepare, once for a task, what takes from the updates whatever points along the weights before the task.

        Args:
            linears: handles of this class.
            anchors, retained: of each of them.

        Returns:
            A function for after every optimizer step; it causes no host synchronisation.
        """

    @abstractmethod
    def leave_subspace_(self, anchor: Tensor | None, basis: Tensor) -> None:
        """Take from the update what it does to the inputs in the span of ``basis``, ``(in_features, d)``."""

    @abstractmethod
    def map_update_(self, anchor: Tensor | None, function: Callable[[Tensor], Tensor]) -> None:
        """Write the weight before the task plus the update mapped on its input side.

        Args:
            anchor: the weight before the task, or ``None`` (LoRA).
            function: a linear map of rows ``(k, in_features)``, fp32, to rows of the same shape.
        """

    def mask_gradient_(self, retained: Tensor) -> None:
        """Zero the gradient of the retained columns; no host synchronisation."""
        gradient = self.column_parameter.grad
        if gradient is not None:
            F.zero_columns_(own_rows(gradient), retained)


class FullLinear(TunedLinear):
    """A linear layer whose whole weight is trained."""

    module: nn.Linear

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def column_parameter(self) -> Tensor:
        return self.module.weight

    def anchor(self) -> Tensor:
        return self.weight.detach().clone()

    def weight_before(self, anchor: Tensor | None) -> Tensor:
        return whole(self._need(anchor))

    def weight_after(self) -> Tensor:
        return whole(self.weight.detach()).float()

    def after(self) -> Tensor:
        return whole(self.weight.detach())

    @torch.no_grad()
    def write_(self, weight: Tensor) -> None:
        assign_(self.weight, weight)

    def changed_by_fusion(self) -> tuple[Tensor, ...]:
        return (own_rows(self.weight.detach()),)

    @contextmanager
    def put_back(self, anchor: Tensor | None) -> Iterator[None]:
        weight = own_rows(self.weight.detach())
        trained = weight.clone()
        weight.copy_(own_rows(self._need(anchor)))
        try:
            yield
        finally:
            weight.copy_(trained)

    def restore_columns_(self, anchor: Tensor | None, retained: Tensor) -> None:
        F.restore_columns_(own_rows(self.weight), own_rows(self._need(anchor)), retained)

    @classmethod
    def projection(
        cls, linears: Sequence[Self], anchors: Sequence[Tensor | None], retained: Sequence[Tensor | None]
    ) -> Callable[[], object]:
        before = [linear._need(anchor) for linear, anchor in zip(linears, anchors, strict=True)]
        project = F.UpdateProjection([own_rows(weight) for weight in before], retained, sum_over_rows(before))
        return lambda: project([own_rows(linear.weight) for linear in linears])

    @torch.no_grad()
    def leave_subspace_(self, anchor: Tensor | None, basis: Tensor) -> None:
        def leave(rows: Tensor) -> Tensor:
            F.leave_subspace_(rows, basis)
            return rows

        self.map_update_(anchor, leave)

    @torch.no_grad()
    def map_update_(self, anchor: Tensor | None, function: Callable[[Tensor], Tensor]) -> None:
        weight, before = own_rows(self.weight), own_rows(self._need(anchor)).float()
        weight.copy_(before + function(weight.float() - before))

    def _need(self, anchor: Tensor | None) -> Tensor:
        if anchor is None:
            raise ValueError(f"{self.name}: full-parameter tuning needs the weight before the task; got no anchor.")
        return anchor


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
    def column_parameter(self) -> Tensor:
        return self.factors.lora_a

    def anchor(self) -> None:
        return None

    def weight_before(self, anchor: Tensor | None) -> Tensor:
        return whole(self.weight.detach())

    @torch.no_grad()
    def weight_after(self) -> Tensor:
        f = self.factors
        return whole(f.weight).float() + F.lora_update(whole(f.lora_a), whole(f.lora_b), f.scaling)

    def after(self) -> F.LoraUpdate:
        f = self.factors
        return F.LoraUpdate(whole(f.lora_a.detach()), whole(f.lora_b.detach()), f.scaling)

    @torch.no_grad()
    def write_(self, weight: Tensor) -> None:
        f = self.factors
        assign_(f.weight, weight)
        own_rows(f.lora_b).zero_()

    def changed_by_fusion(self) -> tuple[Tensor, ...]:
        f = self.factors
        return own_rows(f.weight.detach()), own_rows(f.lora_b.detach())

    @contextmanager
    def put_back(self, anchor: Tensor | None) -> Iterator[None]:
        b = own_rows(self.factors.lora_b.detach())
        trained = b.clone()
        b.zero_()
        try:
            yield
        finally:
            b.copy_(trained)

    def restore_columns_(self, anchor: Tensor | None, retained: Tensor) -> None:
        F.zero_columns_(own_rows(self.factors.lora_a), retained)

    @classmethod
    def projection(
        cls, linears: Sequence[Self], anchors: Sequence[Tensor | None], retained: Sequence[Tensor | None]
    ) -> Callable[[], object]:
        reduce = sum_over_rows([linear.weight for linear in linears])

        def project() -> None:
            factors = [linear.factors for linear in linears]
            directions = gather_all([f.lora_a for f in factors])
            F.project_lora_updates_(
                [
                    F.LoraTensors(own_rows(f.lora_b), a, own_rows(f.weight))
                    for f, a in zip(factors, directions, strict=True)
                ],
                reduce,
            )

        return project

    @torch.no_grad()
    def leave_subspace_(self, anchor: Tensor | None, basis: Tensor) -> None:
        F.leave_subspace_(own_rows(self.factors.lora_a), basis)

    @torch.no_grad()
    def map_update_(self, anchor: Tensor | None, function: Callable[[Tensor], Tensor]) -> None:
        f = self.factors
        update = F.lora_update(function(whole(f.lora_a).float()), own_rows(f.lora_b).float(), f.scaling)
        weight = own_rows(f.weight)
        weight.copy_(weight.float() + update)
        own_rows(f.lora_b).zero_()


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
        ValueError: no block list, no tuned layer, or a name in ``target_modules`` that no tuned layer has.
    """
    prefix, modules = find_decoder_blocks(root, blocks)
    handles: list[TunedLinear] = []
    for index, block in enumerate(modules, start=1):
        inside_adapter: set[int] = set()
        for name, module in block.named_modules():
            if id(module) in inside_adapter:
                continue
            qualified = f"{prefix}.{index - 1}.{name}"
            if lora_factors(module, qualified) is not None:
                inside_adapter.update(id(inner) for inner in module.modules())
                handles.append(LoraLinear(qualified, index, module))
            elif isinstance(module, nn.Linear) and module.weight.requires_grad:
                handles.append(FullLinear(qualified, index, module))
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
        parameter = linear.column_parameter
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
