"""Finding the safety layers: where a model begins and ends to separate malicious from normal prompts.

Source: Li et al., "Safety Layers in Aligned Large Language Models: The Key to LLM Security" (ICLR 2025, arXiv
2408.17003). The hidden states of two normal prompts stay about as similar to one another from layer to layer; those
of a normal and a malicious prompt part in a contiguous range of layers, the safety layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning.functional.drift import directions
from hpa_lightning.prompt_states import prompt_states


@dataclass(frozen=True)
class CosineGap:
    """How far apart normal and malicious prompts are after each decoder block.

    Args:
        normal_normal: mean cosine over all pairs of two normal prompts, one value for each block.
        normal_malicious: mean cosine over all pairs of a normal and a malicious prompt.
        degrees: the gap: the angle of ``normal_malicious`` less the angle of ``normal_normal``, in degrees.
    """

    normal_normal: tuple[float, ...]
    normal_malicious: tuple[float, ...]
    degrees: tuple[float, ...]


@dataclass(frozen=True)
class SafetyLayers:
    """A range of decoder blocks, counted from 1, both ends included, and the gap that it was read from."""

    first: int
    last: int
    gap: CosineGap


@torch.no_grad()
def cosine_gap(normal: Tensor, malicious: Tensor) -> CosineGap:
    """Compare hidden states of normal and of malicious prompts, layer by layer.

    Decision: all pairs are taken where the source draws 500 at random, and the gap is the difference of the angles
    (arccos) of the two mean cosines.

    Args:
        normal: hidden states at the last token of the prompt, ``(n, layers, width)``, n >= 2, any floating dtype.
        malicious: ``(m, layers, width)``, m >= 1, any floating dtype.

    Returns:
        Mean cosines and the gap for each layer; computed in fp64.

    Raises:
        ValueError: other shapes, or a hidden state that is zero or not finite.

    Example:
        >>> import torch
        >>> normal = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [3.0, 0.0]]])
        >>> cosine_gap(normal, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])).degrees
        (0.0, 90.0)
    """
    shapes = tuple(normal.shape), tuple(malicious.shape)
    if (
        normal.ndim != 3
        or malicious.ndim != 3
        or shapes[0][1:] != shapes[1][1:]
        or shapes[0][0] < 2
        or not shapes[1][0]
    ):
        raise ValueError(
            f"got hidden states of shapes {shapes[0]} (normal) and {shapes[1]} (malicious); expected (n, layers, "
            "width) with at least 2 normal and 1 malicious prompts and the same layers and width."
        )
    normal, malicious = directions("normal", normal), directions("malicious", malicious)
    count = normal.shape[0]
    # The sum over all pairs i != j is the square of the sum less the squares, which are 1.
    same = (normal.sum(dim=0).square().sum(dim=-1) - count) / (count * (count - 1))
    other = (normal.mean(dim=0) * malicious.mean(dim=0)).sum(dim=-1)
    same, other = same.clamp(-1.0, 1.0), other.clamp(-1.0, 1.0)
    degrees = torch.rad2deg(torch.arccos(other) - torch.arccos(same))
    return CosineGap(tuple(same.tolist()), tuple(other.tolist()), tuple(degrees.tolist()))


def safety_layer_range(gap: Sequence[float], low: float = 0.1, high: float = 0.9) -> tuple[int, int]:
    """Return the range of layers over which the gap opens.

    Decision (the source reads the range off a plot and then refines it by scaling weights and counting refusals):
    ``last`` is the first layer whose gap reaches ``high`` times the largest gap, and the range begins right after the
    last layer before it whose gap is still below ``low`` times the largest.

    Args:
        gap: one value for each layer, in any unit.
        low, high: ``0 < low < high <= 1``.

    Returns:
        ``(first, last)``, counted from 1, both ends included.

    Raises:
        ValueError: no layers, values that are not finite, no positive gap, or wrong thresholds.

    Example:
        >>> safety_layer_range([0.0, 0.5, 4.0, 9.0, 10.0, 8.0])
        (3, 4)
    """
    if not 0.0 < low < high <= 1.0:
        raise ValueError(f"low and high are {low} and {high}; expected 0 < low < high <= 1.")
    if not len(gap) or not all(math.isfinite(value) for value in gap):
        raise ValueError(f"the gap is {list(gap)}; expected one finite value for each layer.")
    largest = max(gap)
    if largest <= 0.0:
        raise ValueError(
            f"no layer separates malicious prompts from normal ones: the largest gap is {largest:.3g}. Check that the "
            "model is the aligned one, take harmless prompts that differ from the malicious ones in the harm "
            "alone, or name the layers yourself."
        )
    last = next(index for index, value in enumerate(gap) if value >= high * largest)
    first = max((index + 1 for index in range(last) if gap[index] < low * largest), default=0)
    return first + 1, last + 1


def shown_by_states(harmless: Tensor, harmful: Tensor) -> tuple[tuple[float, ...], tuple[int, int] | None, str]:
    """Read the safety layers off hidden states that are there already.

    Args:
        harmless, harmful: ``(n, blocks, width)``, see :func:`cosine_gap`.

    Returns:
        The gap in degrees, four decimals, one for each block; first and last safety layer, ``None`` where no gap opens;
        and why not.
    """
    gap = cosine_gap(harmless, harmful).degrees
    found, reason = None, ""
    try:
        found = safety_layer_range(gap)
    except ValueError as error:
        reason = str(error)
    return tuple(round(angle, 4) for angle in gap), found, reason


def find_safety_layers(
    pl_module: L.LightningModule,
    collator: Any,
    normal_records: Sequence[Any],
    malicious_records: Sequence[Any],
    *,
    batch_size: int = 8,
    blocks: str | None = None,
    low: float = 0.1,
    high: float = 0.9,
) -> SafetyLayers:
    """Run the model over prompts and return the range of decoder blocks where the two kinds part.

    The source's refinement by over-rejection is not done. The prompts should differ in harm and not in form (length,
    picture or none, template): whatever distinguishes them counts.

    Args:
        pl_module: the aligned model; its ``generate(batch, max_new_tokens=1)`` is called as :class:`MLLMModule` has it.
        collator: its ``generate(records)`` makes left-padded prompts, as :class:`MLLMCollator` does.
        normal_records: harmless prompts, at least 2; a final answer is cut off by the collator.
        malicious_records: harmful prompts, at least 1.
        batch_size: prompts in one forward pass.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        low, high: see :func:`safety_layer_range`.

    Returns:
        The range, and the gap of every block.

    Raises:
        ValueError: too few records, no decoder blocks, blocks that the forward pass does not reach, or no gap.
    """
    if len(normal_records) < 2 or not len(malicious_records):
        raise ValueError(
            f"got {len(normal_records)} normal and {len(malicious_records)} malicious prompts; expected at least 2 "
            "and 1."
        )
    normal, malicious = (
        prompt_states(pl_module, collator, records, batch_size, blocks)
        for records in (normal_records, malicious_records)
    )
    gap = cosine_gap(normal, malicious)
    return SafetyLayers(*safety_layer_range(gap.degrees, low, high), gap)
