"""Decoder blocks run one by one: the calls of a forward pass are recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from hpa_lightning.functional.numerics.arena import Arena

_CACHES = ("past_key_values", "past_key_value", "layer_past")
"""Names under which blocks take keys and values, of any type; a `Cache` counts as one under any name or none."""


class _StopForward(BaseException):
    """Ends a forward pass once the blocks have been seen."""


@dataclass
class BlockCall:
    """What one block was called with for one batch; the hidden state is kept apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_key: str | None  # keyword of the hidden state; None: first positional argument

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        if self.hidden_key is None:
            return block(hidden, *self.args, **self.kwargs)
        return block(*self.args, **{self.hidden_key: hidden}, **self.kwargs)


def _block_call(args: tuple[Any, ...], kwargs: dict[str, Any], hidden_key: str | None) -> BlockCall:
    """The call without a cache: blocks that fill one keep the keys and values of every batch until the last block."""
    kept = tuple(None if isinstance(value, Cache) else value for value in args)
    named = {key: None if key in _CACHES or isinstance(value, Cache) else value for key, value in kwargs.items()}
    if "use_cache" in named:
        named["use_cache"] = False
    return BlockCall(kept, named, hidden_key)


def record_calls(
    forward: Callable[[Any], Any], batches: Sequence[Any], blocks: Sequence[nn.Module], may_stop: bool
) -> tuple[list[list[BlockCall]], list[Tensor]] | str:
    """Record each block's call for each batch, and the first hidden states; or say why replay would be wrong."""
    calls: list[list[BlockCall]] = [[] for _ in blocks]
    hidden_states: list[Tensor] = []
    arena = Arena()
    output_is_tuple = _returns_tuple(forward, batches[0], blocks[0], may_stop)
    for number, batch in enumerate(batches):
        expected_block, is_first = 0, number == 0
        reason = ""
        forwarded: Tensor | None = None
        version: int | None = None

        def pass_through(index: int, *args: Any, is_first: bool = is_first, **kwargs: Any) -> Any:
            nonlocal expected_block, forwarded, version, reason
            hidden_key = None if args else next(iter(kwargs))
            hidden: Tensor = args[0] if hidden_key is None else kwargs[hidden_key]
            touched = hidden is not forwarded or _version(hidden) != version
            if index != expected_block or (index > 0 and touched):
                reason = reason or _not_sequential(index, expected_block, len(blocks), touched)
                if may_stop:
                    raise _StopForward
            if index == 0:
                hidden_states.append(arena.keep(hidden))  # what is handed on may be changed in place
            rest = {key: value for key, value in kwargs.items() if key != hidden_key}
            calls[index].append(_block_call(args[1:], rest, hidden_key))
            expected_block = index + 1
            if may_stop and expected_block == len(blocks) and not is_first:
                raise _StopForward  # the first batch continues: are blocks called again?
            forwarded = hidden.view_as(hidden)  # a new object, so that the next block's input tells who touched it
            version = _version(forwarded)
            return (forwarded,) if output_is_tuple else forwarded

        with _replaced_forwards(blocks, pass_through), suppress(_StopForward):
            forward(batch)
        silent = next((index for index, recorded in enumerate(calls) if len(recorded) != number + 1), None)
        if reason or silent is not None:
            return reason or f"a training step leaves out decoder block {(silent or 0) + 1}"
    return calls, hidden_states


def _not_sequential(index: int, expected: int, blocks: int, touched: bool) -> str:
    """Why a call of the block ``index`` instead of ``expected`` cannot be replayed; ``touched``: with new inputs."""
    if index == expected:
        return f"the model does something between its decoder blocks {index} and {index + 1} (features injected there)"
    if index == 0 and expected == blocks:
        if touched:
            return "a training step calls the model several times for one batch (once for each loader, say)"
        return "the model runs through its decoder blocks several times"
    before = f"after block {expected}" if expected else "first"
    return f"the model calls decoder block {index + 1} {before}, out of their order"


def overwritten(hidden: Tensor, output: Any) -> Tensor:
    """The block's output in the memory of its input: a new tensor each time would leave holes of that size behind."""
    new: Tensor = output[0] if isinstance(output, tuple) else output
    same = (hidden.shape, hidden.dtype, hidden.device) == (new.shape, new.dtype, new.device)
    writable = torch.is_inference_mode_enabled() or not hidden.is_inference()
    return hidden.copy_(new) if same and writable else new


def _version(tensor: Tensor) -> int | None:
    """Counts changes in place, through any view; None in inference mode, which keeps no count."""
    return None if tensor.is_inference() else tensor._version


def run_up_to(forward: Callable[[Any], Any], batch: Any, block: nn.Module, calls: int | None) -> int:
    """Run the model until the block has been called ``calls`` times, or to its end, and return how often it was."""
    seen = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == calls:
            raise _StopForward

    handle = block.register_forward_hook(count)
    try:
        with suppress(_StopForward):
            forward(batch)
    finally:
        handle.remove()
    return seen


def _returns_tuple(forward: Callable[[Any], Any], batch: Any, block: nn.Module, may_stop: bool) -> bool:
    answer: list[bool] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        answer.append(isinstance(output, tuple))
        if may_stop:
            raise _StopForward

    handle = block.register_forward_hook(stop)
    try:
        forward(batch)
    except _StopForward:
        pass
    finally:
        handle.remove()
    if not answer:
        raise ValueError(
            "calibration never reached the first decoder block; check `blocks` and the calibration batches."
        )
    return answer[0]


@contextmanager
def _replaced_forwards(blocks: Sequence[nn.Module], replacement: Callable[..., Any]) -> Iterator[None]:
    """Give each block ``replacement(index, ...)`` as its forward, and put the old one back whatever happens."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.__dict__["forward"] = lambda *args, _index=index, **kwargs: replacement(_index, *args, **kwargs)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward
