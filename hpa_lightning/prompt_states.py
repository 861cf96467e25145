"""The hidden states of prompts after every decoder block; the finder of safety layers and the drift compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn

from hpa_lightning.answering import scored_module
from hpa_lightning.calibration import uncompiled
from hpa_lightning.data.protocols import Collator
from hpa_lightning.data.record import Record
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.mllm import eval_mode


def prompt_states(
    pl_module: L.LightningModule,
    collator: Collator,
    records: Sequence[Record],
    batch_size: int = 8,
    blocks: str | None = None,
) -> Tensor:
    """Run a model over prompts; return what every decoder block puts out at the last token of each.

    Args:
        pl_module: its ``generate(batch, max_new_tokens=1)`` is called as :class:`MLLMModule` has it.
        collator: its ``generate(records)`` makes left-padded prompts, as :class:`MLLMCollator` does; a final answer of
            a record is cut off there.
        records: the prompts.
        batch_size: prompts in one forward pass.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Returns:
        ``(n, blocks, width)``, fp32 on the CPU.

    Raises:
        ValueError: no prompts, a batch size below 1, no decoder blocks, or blocks that the forward pass does not reach.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if not len(records):
        raise ValueError("got no prompts; expected at least one.")
    module = scored_module(pl_module, "prompt_states")
    prefix, modules = find_decoder_blocks(pl_module, blocks)
    seen: dict[int, Tensor] = {}

    def hook(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen.setdefault(index, hidden[:, -1].detach().float().cpu())  # the first call is the prompt's

        return keep

    states = []
    with ExitStack() as stack, torch.no_grad(), uncompiled():
        stack.enter_context(eval_mode(pl_module))
        for index, block in enumerate(modules):
            stack.callback(block.register_forward_hook(hook(index)).remove)
        for start in range(0, len(records), batch_size):
            chunk = list(records[start : start + batch_size])
            seen.clear()
            module.generate(move_data_to_device(collator.generate(chunk), pl_module.device), max_new_tokens=1)
            rows = {tuple(hidden.shape[:1]) for hidden in seen.values()}
            if len(seen) < len(modules) or rows != {(len(chunk),)}:
                raise ValueError(
                    f"{len(chunk)} prompts went through {len(seen)} of the {len(modules)} blocks of {prefix!r}, in "
                    f"batches of {sorted(row[0] for row in rows)}; expected all blocks and one "
                    "row for each prompt (no beams)."
                )
            states.append(torch.stack([seen[index] for index in range(len(modules))], dim=1))
    return torch.cat(states)
