"""Runs a model over calibration batches and gathers the Hessians of every linear layer's inputs.

The decoder blocks are replayed one after the other, as GPTQ does (Frantar et al., ICLR 2023): a first pass, in which
the blocks hand their input through without computing, records what each block is called with; then each block runs
over all batches while the inputs of its linear layers are accumulated. Memory is one block's Hessians and one hidden
state for each batch; time is one forward pass. Where the blocks are no chain (features injected after some layer, in
place too; blocks called several times, by the model or by a training step that calls the model once for each loader)
the replay would be wrong; that is detected in the first pass, and forward passes up to the block, one for each block
and batch, take its place: slower, with the same memory and the same result. A warning says which of these it is.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hpa_lightning.functional import HessianAccumulator
from hpa_lightning.functional.numerics.arena import Arena

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

_CACHES = ("past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class DummyBatch:
    """A batch that is run and not counted: it keeps a process in step with others that have more batches."""

    batch: Any


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, compiled models (``torch.compile``, ``Module.compile``) run as written: compiled code skips new hooks."""
    dynamo_is_used = "torch._dynamo" in sys.modules  # to import it takes seconds
    return torch.compiler.set_stance("force_eager") if dynamo_is_used else nullcontext()


class _StopForward(BaseException):
    """Ends a forward pass once the blocks have been seen."""


@dataclass
class _Call:
    """What one block was called with for one batch; the hidden state is kept apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_key: str | None  # keyword of the hidden state; None: first positional argument

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        kwargs = {key: (None if key in _CACHES else value) for key, value in self.kwargs.items()}
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        if self.hidden_key is None:
            return block(hidden, *self.args, **kwargs)
        return block(*self.args, **{self.hidden_key: hidden}, **kwargs)


def inverse_hessian_diagonals(
    forward: Callable[[Any], Any],
    batches: Sequence[Any],
    blocks: Sequence[nn.Module],
    linears: Mapping[str, nn.Module],
    *,
    normalized: bool = True,
    **options: Any,
) -> dict[str, Tensor]:
    """Return diag(H^-1) of the inputs of each linear layer, ``H = (2/n) X^T X`` damped.

    Args:
        forward, batches, blocks, linears, options: see :func:`visit_hessians`.
        normalized: False for ``H = 2 X^T X``, the sum over the tokens.

    Returns:
        name -> ``(in_features,)``, fp32, on the device of the inputs.

    Raises:
        ValueError: no batches, a layer outside the blocks, a layer that never ran, or inputs that are not finite.
    """
    result: dict[str, Tensor] = {}

    def keep_diagonals(accumulators: Mapping[str, HessianAccumulator]) -> None:
        result.update(shared_inverse_diagonals(accumulators, normalized))

    visit_hessians(forward, batches, blocks, linears, keep_diagonals, **options)
    return result


def shared_inverse_diagonals(
    accumulators: Mapping[str, HessianAccumulator], normalized: bool = True
) -> dict[str, Tensor]:
    """Return diag(H^-1) of each layer; layers that share a Hessian share the tensor, which is computed once.

    The accumulators are used up, one after the other, so that no copy of a Hessian is made.

    Args:
        accumulators: name -> accumulator, as :func:`visit_hessians` hands them on.
        normalized: False for ``H = 2 X^T X``, the sum over the tokens.
    """
    computed: dict[int, Tensor] = {}
    for accumulator in accumulators.values():
        if id(accumulator) not in computed:
            share = 1 if normalized else accumulator.count
            computed[id(accumulator)] = accumulator.inverse_diagonal(release=True) / share
    return {name: computed[id(accumulator)] for name, accumulator in accumulators.items()}


def visit_hessians(
    forward: Callable[[Any], Any],
    batches: Sequence[Any],
    blocks: Sequence[nn.Module],
    linears: Mapping[str, nn.Module],
    visit: Callable[[Mapping[str, HessianAccumulator]], None],
    *,
    damping: float = 0.01,
    **options: Any,
) -> None:
    """Gather the Hessians of the inputs of each linear layer and hand them on, one decoder block at a time.

    Args:
        forward, batches, blocks, linears, visit, options: see :func:`visit_inputs`.
        damping: share of the mean diagonal added to the diagonal.

    Raises:
        ValueError: see :func:`visit_inputs`.
    """

    def accumulate(columns: int) -> HessianAccumulator:
        return HessianAccumulator(columns, damping=damping)

    visit_inputs(forward, batches, blocks, linears, visit, accumulate, **options)


def visit_inputs(
    forward: Callable[[Any], Any],
    batches: Sequence[Any],
    blocks: Sequence[nn.Module],
    linears: Mapping[str, nn.Module],
    visit: Callable[[Mapping[str, Accumulator]], None],
    accumulate: Callable[[int], Accumulator],
    *,
    valid_positions: Callable[[Any], Mask] = lambda batch: None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_block: Callable[[int, int], None] | None = None,
    all_processes: bool = False,
    may_stop: bool = True,
) -> None:
    """Accumulate the inputs of each linear layer and hand on what was made of them, one decoder block at a time.

    The modules that are passed must be in eval mode if dropout is to be off. Layers that are fed the very same tensor
    (query, key and value; gate and up) share one Hessian: the same object under several names.

    Args:
        forward: runs the whole model on one batch; its result is not used.
        batches: the calibration batches, on the model's device.
        blocks: the decoder blocks in the order in which they are called.
        linears: name -> module whose first input is recorded; every module lies inside one of ``blocks``.
        visit: called once for each block that has layers, with name -> accumulator. It must not change the weights:
            a model that cannot be replayed block by block is run again for the next block.
        accumulate: makes an accumulator for a number of columns.
        valid_positions: batch -> boolean ``(batch, tokens)``, True where a position is no padding, or ``None`` to
            take every position; several of them for a batch that the model runs in several forward passes. Decision:
            image tokens count, padding does not.
        context: autocast or the like, entered around every computation.
        on_block: called with (blocks done, blocks) for progress.
        all_processes: the batches are this process's share, equally many on each (fill up with :class:`DummyBatch`);
            ``visit`` gets the Hessians of all of them.
        may_stop: end forward passes with an exception once they have shown what is needed. ``False`` for models whose
            hooks have to run to the end (FSDP2).

    Raises:
        ValueError: no batches, a layer outside the blocks, a layer that never ran, inputs that are not finite, or a
            block whose layers are all fed nothing but 0. A single layer that is gets a warning with its name.
    """
    if len(batches) == 0:
        raise ValueError("calibration got no batches; expected at least one.")
    inside = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    outside = [name for name, module in linears.items() if id(module) not in inside]
    if outside:
        raise ValueError(f"calibration got layers outside the decoder blocks: {outside[:3]}.")
    silent: list[str] = []
    by_block: list[dict[str, nn.Module]] = [{} for _ in blocks]
    for name, module in linears.items():
        by_block[inside[id(module)]][name] = module

    with torch.no_grad(), context(), uncompiled():
        counted = [not isinstance(batch, DummyBatch) for batch in batches]
        batches = [batch.batch if isinstance(batch, DummyBatch) else batch for batch in batches]
        masks = [valid_positions(batch) for batch in batches]
        found = _record_calls(forward, batches, blocks, may_stop)
        recorded = None if isinstance(found, str) else found
        if recorded is None:
            warnings.warn(
                f"{found}: calibration runs it for each of {len(blocks)} blocks and {len(batches)} batches anew, in "
                "place of once for each batch. The Hessians are the same.",
                stacklevel=2,
            )
        for index, block in enumerate(blocks):
            with _Recorder(by_block[index], accumulate) as recorder:
                if recorded is not None:
                    calls, hidden = recorded
                    for number, mask in enumerate(masks):
                        recorder.start_batch(mask, counted[number])
                        output = calls[index][number].run(block, hidden[number])
                        hidden[number] = _overwritten(hidden[number], output)
                elif by_block[index]:
                    calls_of_block = None  # in a forward pass; counted in the first one
                    for batch, mask, counts in zip(batches, masks, counted, strict=True):
                        recorder.start_batch(mask, counts)
                        calls_of_block = _run_up_to(forward, batch, block, calls_of_block if may_stop else None)
            if by_block[index]:
                accumulators = recorder.accumulators()
                if all_processes:
                    for accumulator in {id(one): one for one in accumulators.values()}.values():
                        accumulator.all_reduce()
                silent += _zero_inputs(accumulators)
                visit(accumulators)
            if on_block is not None:
                on_block(index + 1, len(blocks))
    if silent:
        warnings.warn(
            f"calibration: the inputs of {len(silent)} of {len(linears)} layers are 0 at every position ("
            f"{', '.join(silent[:3])}{', ...' if len(silent) > 3 else ''}), so that their Hessians tell no column from "
            "another. Expected calibration data that reach these layers; leave them out with target_modules otherwise.",
            stacklevel=2,
        )


def _zero_inputs(accumulators: Mapping[str, InputAccumulator]) -> list[str]:
    """The layers whose inputs are 0 throughout.

    Raises:
        ValueError: those are all layers of a block that has several inputs: the model is broken, not the layer unused.
    """
    zero = {id(one): one.is_zero for one in accumulators.values()}
    names = [name for name, accumulator in accumulators.items() if zero[id(accumulator)]]
    if len(names) == len(accumulators) and len(zero) > 1:
        raise ValueError(
            f"the inputs of all {len(names)} layers beside {names[0]} are 0 at every calibration position; the model's "
            "weights are damaged, or its embeddings are zero."
        )
    return names


class _Recorder(Generic[Accumulator]):
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

    def __enter__(self) -> _Recorder[Accumulator]:
        for name, module in self._modules.items():
            handle = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()
        self._inputs.clear()

    def start_batch(self, mask: Mask, counted: bool) -> None:
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
            call = self._calls[name] = self._calls.get(name, -1) + 1
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
        return mask.reshape(inputs.shape[:-1])  # some layers see tokens in one row

    def accumulators(self) -> dict[str, Accumulator]:
        silent = [name for name in self._modules if name not in self._leader]
        if silent:
            raise ValueError(
                f"calibration never reached {silent[:3]}; expected every tuned layer to run in a forward pass."
            )
        return {name: self._accumulators[leader] for name, leader in self._leader.items()}


def _record_calls(
    forward: Callable[[Any], Any], batches: Sequence[Any], blocks: Sequence[nn.Module], may_stop: bool
) -> tuple[list[list[_Call]], list[Tensor]] | str:
    """Record each block's call for each batch, and the first hidden states; or say why replay would be wrong."""
    calls: list[list[_Call]] = [[] for _ in blocks]
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
            calls[index].append(_Call(args[1:], rest, hidden_key))
            expected_block = index + 1
            if may_stop and expected_block == len(blocks) and not is_first:
                raise _StopForward  # the first batch goes on: are blocks called again?
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
    """Why a call of the block ``index`` in place of ``expected`` cannot be replayed; ``touched``: with new inputs."""
    if index == expected:
        return f"the model does something between its decoder blocks {index} and {index + 1} (features injected there)"
    if index == 0 and expected == blocks:
        if touched:
            return "a training step calls the model several times for one batch (once for each loader, say)"
        return "the model runs through its decoder blocks several times"
    before = f"after block {expected}" if expected else "first"
    return f"the model calls decoder block {index + 1} {before}, out of their order"


def _overwritten(hidden: Tensor, output: Any) -> Tensor:
    """The block's output in the memory of its input: a new tensor each time would leave holes of that size behind."""
    new: Tensor = output[0] if isinstance(output, tuple) else output
    same = (hidden.shape, hidden.dtype, hidden.device) == (new.shape, new.dtype, new.device)
    writable = torch.is_inference_mode_enabled() or not hidden.is_inference()
    return hidden.copy_(new) if same and writable else new


def _version(tensor: Tensor) -> int | None:
    """Counts changes in place, through any view; None in inference mode, which keeps no count."""
    return None if tensor.is_inference() else tensor._version


def _run_up_to(forward: Callable[[Any], Any], batch: Any, block: nn.Module, calls: int | None) -> int:
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
