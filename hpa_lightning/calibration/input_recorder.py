"""Hooks that record what goes into linear layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

Mask = Tensor | Sequence[Tensor] | None


class InputAccumulator(Protocol):
    """What takes in a layer's inputs, batch by batch: a Hessian, or a sketch of it."""

    @property
    def is_zero(self) -> bool:
        """Whether every input seen so far is 0."""

    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add inputs ``(..., c)``; ``mask`` is True at the positions that count."""

    def all_reduce(self, group: Any = None) -> None:
        """Make what all processes have seen what this one has seen."""


Accumulator = TypeVar("Accumulator", bound=InputAccumulator)


class InputRecorder(Generic[Accumulator]):
    """Accumulates the inputs of one block's linear layers; owns the hooks and removes them on exit."""

    def __init__(self, modules: Mapping[str, nn.Module], accumulate: Callable[[int], Accumulator]) -> None:
        self._modules = modules
        self._accumulate = accumulate
        self._accumulators: dict[str, Accumulator] = {}
        self._leader: dict[str, str] = {}  # layer -> the layer that was fed the same tensor first
        self._inputs: dict[str, Tensor] = {}  # this batch's input of each layer, kept so that identity is meaningful
        self._masks: tuple[Tensor, ...] = ()
        self._calls: dict[str, int] = {}  # of each layer in this batch
        self._counted = True
        self._hooks = ExitStack()

    def __enter__(self) -> InputRecorder[Accumulator]:
        for name, module in self._modules.items():
            handle = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()
        self._inputs.clear()

    def start_batch(self, mask: Mask, counted: bool) -> None:
        self._check_calls()
        self._inputs.clear()
        self._calls.clear()
        self._masks = () if mask is None else (mask,) if isinstance(mask, Tensor) else tuple(mask)
        self._counted = counted

    def _hook(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            if name not in self._leader:
                shared = (other for other, seen in self._inputs.items() if seen is inputs)
                self._leader[name] = self._leader.get(next(shared, name), name)
            leader = self._leader[name]
            call = self._calls[name] = self._calls.get(name, -1) + 1
            if leader != name:
                if self._inputs.get(leader) is not inputs:
                    raise RuntimeError(
                        f"{name} shared its input with {leader} in the first calibration batch and not in a later one; "
                        "models that route tokens differently from batch to batch are not supported."
                    )
                return
            self._inputs[name] = inputs
            if name not in self._accumulators:
                self._accumulators[name] = self._accumulate(inputs.shape[-1])
            mask = self._mask_of(name, inputs, call)
            if not self._counted:
                inputs, mask = inputs.flatten(0, -2)[:0], None
            self._accumulators[name].update(inputs.detach(), mask=mask)

        return record

    def _mask_of(self, name: str, inputs: Tensor, call: int) -> Tensor | None:
        """The mask of this call of a layer, in the shape of its inputs' positions.

        Of several masks (a batch of several loaders) the layer's k-th call has the k-th; a model that runs all parts
        at once has them one behind the other.
        """
        if not self._masks:
            return None
        positions = math.prod(inputs.shape[:-1])
        if len(self._masks) == 1:
            mask = self._masks[0]
        elif call == 0 and positions == sum(mask.numel() for mask in self._masks):
            mask = torch.cat([mask.flatten() for mask in self._masks])
        else:
            mask = self._masks[min(call, len(self._masks) - 1)]
        if mask.numel() != positions:
            raise ValueError(
                f"{name} got inputs of shape {tuple(inputs.shape)}, and the batch has "
                f"{' and '.join(str(tuple(mask.shape)) for mask in self._masks)} positions, of which those without "
                "padding count; expected as many inputs as positions. A layer that sees some of the tokens alone (an "
                "expert) cannot be calibrated: leave it out with target_modules."
            )
        if mask.ndim == 2 and inputs.shape[:-1] == mask.T.shape != mask.shape:
            return mask.T  # a model that takes the tokens first
        return mask.reshape(inputs.shape[:-1])  # some layers see tokens in one row

    def _check_calls(self) -> None:
        """Refuse layers of which one is called again without the others that it shares its first input with."""
        for name, leader in self._leader.items():
            own, others = (self._calls.get(one, -1) + 1 for one in (name, leader))
            if own != others:
                raise ValueError(
                    f"{name} is called {own} times in a forward pass and {leader} {others} times, and the first of "
                    "their inputs is the same; expected layers that share an input to share all of them, since they "
                    "share one Hessian. Leave the layer that is used twice out with target_modules."
                )

    def accumulators(self) -> dict[str, Accumulator]:
        self._check_calls()
        silent = [name for name in self._modules if name not in self._leader]
        if silent:
            raise ValueError(
                f"calibration never reached {silent[:3]}; expected every tuned layer to run in a forward pass. A layer "
                "that is never called has no inputs to look at: one that no batch needs, or whose weight alone is read "
                "(out_proj of torch.nn.MultiheadAttention, dt_proj of Mamba; an adapter on it learns nothing either). "
                "Leave it out with target_modules."
            )
        return {name: self._accumulators[leader] for name, leader in self._leader.items()}
