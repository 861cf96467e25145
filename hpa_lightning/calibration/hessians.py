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

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpa_lightning.calibration.block_calls import overwritten, record_calls, run_up_to
from hpa_lightning.calibration.input_recorder import Accumulator, InputAccumulator, InputRecorder, Mask
from hpa_lightning.functional import HessianAccumulator


@dataclass(frozen=True)
class DummyBatch:
    """A batch that is run and not counted: it keeps a process in step with others that have more batches."""

    batch: Any


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, compiled models (``torch.compile``, ``Module.compile``) run as written: compiled code skips new hooks."""
    dynamo_is_used = "torch._dynamo" in sys.modules  # to import it takes seconds
    return torch.compiler.set_stance("force_eager") if dynamo_is_used else nullcontext()


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
        linears: name -> module whose first input is recorded; every module is inside one of ``blocks``.
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
        found = record_calls(forward, batches, blocks, may_stop)
        recorded = None if isinstance(found, str) else found
        if recorded is None:
            warnings.warn(
                f"{found}: calibration runs it for each of {len(blocks)} blocks and {len(batches)} batches, not "
                "once for each batch. The Hessians are the same.",
                stacklevel=2,
            )
        for index, block in enumerate(blocks):
            with InputRecorder(by_block[index], accumulate) as recorder:
                if recorded is not None:
                    calls, hidden = recorded
                    for number, mask in enumerate(masks):
                        recorder.start_batch(mask, counted[number])
                        output = calls[index][number].run(block, hidden[number])
                        hidden[number] = overwritten(hidden[number], output)
                elif by_block[index]:
                    calls_of_block = None  # in a forward pass; counted in the first one
                    for batch, mask, counts in zip(batches, masks, counted, strict=True):
                        recorder.start_batch(mask, counts)
                        calls_of_block = run_up_to(forward, batch, block, calls_of_block if may_stop else None)
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
            f"{', '.join(silent[:3])}{', ...' if len(silent) > 3 else ''}), so their Hessians cannot rank the columns. "
            "Expected calibration data that reach these layers; otherwise exclude them with target_modules.",
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
