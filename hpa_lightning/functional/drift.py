"""How far hidden states have turned.

Source: the companion study (arXiv 2410.07571) compares hidden states before and after vision-language adaptation, block
by block, by their cosine similarity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpa_lightning.functional.numerics.checks import check_float


def directions(name: str, states: Tensor) -> Tensor:
    """Return the vectors of the last dimension at length 1, fp64.

    Args:
        name: what they are called in the message.
        states: ``(..., width)``, any floating dtype.

    Raises:
        ValueError: a vector that is zero or not finite.
    """
    wide = states.to(torch.float64)
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise ValueError(f"{name}: a hidden state is zero or not finite; expected vectors that have a direction.")
    found: Tensor = wide / norms
    return found


@torch.no_grad()
def state_cosines(before: Tensor, after: Tensor) -> Tensor:
    """Compare hidden states of the same prompts before and after training, block by block.

    The drift is ``1 - cosine``: 0 where the state keeps its direction, whatever its length.

    Args:
        before: ``(n, blocks, width)``, any floating dtype; see :func:`hpa_lightning.prompt_states.prompt_states`.
        after: the same prompts' in the same order, of the same shape.

    Returns:
        The cosine of every prompt at every block, ``(n, blocks)``, fp64 within [-1, 1].

    Raises:
        ValueError: other shapes, no prompt, or a hidden state that is zero or not finite.

    Example:
        >>> before = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> state_cosines(before, torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])).tolist()
        [[1.0, 0.0]]
    """
    check_float("before", before, ("n", "blocks", "width"))
    check_float("after", after, tuple(before.shape), like=before)
    return (directions("before", before) * directions("after", after)).sum(dim=-1).clamp(-1.0, 1.0)
