"""Which linear layers of a language model adapters go on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hpa_lightning.modules.blocks import find_decoder_blocks


def linear_names(model: nn.Module, wanted: Sequence[str] | None = None, blocks: str | None = None) -> list[str]:
    """Return the qualified names of the linear layers of the decoder blocks, in their order.

    Args:
        model: the model.
        wanted: last names of the layers (``["q_proj", "v_proj"]``); all of them when ``None``.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.

    Raises:
        ValueError: no block list, no layer that matches, or a name that no layer has.
    """
    prefix, modules = find_decoder_blocks(model, blocks)
    linears = [
        f"{prefix}.{index}.{name}"
        for index, block in enumerate(modules)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    targets = [name for name in linears if wanted is None or name.rsplit(".", 1)[-1] in wanted]
    missing = set(wanted or ()) - {name.rsplit(".", 1)[-1] for name in targets}
    if not targets or missing:
        raise ValueError(
            f"target_modules={wanted} matches {len(targets)} linear layers of {prefix!r}"
            + (f", none of them named {sorted(missing)}" if missing else "")
            + f"; expected names out of {sorted({name.rsplit('.', 1)[-1] for name in linears})}."
        )
    return targets


def uncompiled_name(name: str) -> str:
    """Return the name that a module or tensor has where nothing is compiled: ``torch.compile`` puts a wrapper around.

    Example:
        >>> uncompiled_name("_orig_mod.layers.0._orig_mod.mlp.weight")
        'layers.0.mlp.weight'
    """
    return name.replace("_orig_mod.", "")
