"""How far a model has moved between two checkpoints: hidden states and weights of every decoder block."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from hpa_lightning.callbacks.layer_drift import HARMFUL, HARMLESS
from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.drift.compared_side import ComparedSide, open_side
from hpa_lightning.drift.drift_inputs import read_kept
from hpa_lightning.functional import state_cosines
from hpa_lightning.fuse.adapted import is_adapter
from hpa_lightning.modules.trainable import PROJECTORS, VISION
from hpa_lightning.prompt_states import prompt_states
from hpa_lightning.safety_layers import shown_by_states
from hpa_lightning.weight_drift import WeightDrift

_NAMED = 3


@dataclass(frozen=True)
class ModelDrift:
    """What two checkpoints of one model differ by.

    Args:
        before, after: where they are.
        sets: name of the prompts -> how many.
        cosines: name of the prompts -> mean cosine of the hidden states at the last token, one for each block.
        first, last: the safety layers of the model before, counted from 1; ``None``: not looked for, or no gap.
        gap_degrees: the gap that they were read from.
        weights: ``||W - W_0|| / ||W_0||`` over the linear layers of each block.
        modules: the same by last name of the layers, over all blocks.
        layers: the same of every layer.
        elsewhere: the same of the tensors outside these layers: norms and biases of the blocks, embeddings and head,
            projector, vision tower, other.
        unmoved: percent of each block's input columns that are equal in both, to the bit.
        kept: percent of each block's columns that HPA kept, from a run or an audit; ``None``: not given.
        kept_from: where that stands.
    """

    before: str
    after: str
    sets: Mapping[str, int]
    cosines: Mapping[str, Sequence[float]]
    first: int | None
    last: int | None
    gap_degrees: Sequence[float] | None
    weights: Sequence[float]
    modules: Mapping[str, float]
    layers: Mapping[str, float] = field(repr=False)
    elsewhere: Mapping[str, float]
    unmoved: Sequence[float]
    kept: Sequence[float] | None = None
    kept_from: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def compare_models(
    before: str | Path,
    after: str | Path,
    base: str | Path | None = None,
    prompts: Mapping[str, Sequence[Record]] | None = None,
    *,
    kept_from: str | Path | None = None,
    batch_size: int = 8,
    blocks: str | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> ModelDrift:
    """Compare a model before and after training.

    Weights are read one tensor at a time. The prompts run through one model after the other, both in float32 and with
    the prompts as the processor of the model before writes them.

    Source: arXiv 2410.07571, analysis of the layers; the figures are those of the callback ``LayerDrift``.

    Args:
        before, after: Hugging Face folders, peft adapters on ``base``, or checkpoints of Lightning.
        base: folder of the model that adapters belong to.
        prompts: name -> prompts; weights alone are compared without any. The safety layers are read off those named
            ``harmless`` and ``harmful``.
        kept_from: where the columns stand that HPA kept, see :func:`read_kept`.
        batch_size: prompts in one forward pass.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        device: where the prompts run.
        progress: show progress bars.

    Raises:
        ValueError: not two states of one model (other blocks, layers, shapes, tensors), weights that are not finite, a
            base without an adapter, or what :func:`open_side` refuses.
    """
    if base is not None and not (is_adapter(before) or is_adapter(after)):
        raise ValueError(
            f"base is {base}, and neither {before} nor {after} is a peft adapter's folder; leave it out, or name the "
            "adapter's folder."
        )
    old, new = open_side(before, base, blocks), open_side(after, base, blocks)
    kept = None if kept_from is None else read_kept(kept_from, old.layout.count)  # before what takes long
    weights = _compare_weights(old, new, progress)
    first: dict[str, Tensor] = {}
    cosines: dict[str, list[float]] = {}
    if prompts:
        processor = _processor(old, new)
        options = (batch_size, blocks, device, progress)
        first, second = (_states(side, processor, prompts, *options) for side in (old, new))
        cosines = {name: state_cosines(first[name], second[name]).mean(dim=0).tolist() for name in prompts}
    gap, found = None, None
    if {HARMLESS, HARMFUL} <= set(first) and len(first[HARMLESS]) > 1:
        gap, found, reason = shown_by_states(first[HARMLESS], first[HARMFUL])
        if found is None:
            warnings.warn(f"{before}: no safety layers are found: {reason}", stacklevel=2)
    return ModelDrift(
        before=str(before),
        after=str(after),
        sets={name: len(rows) for name, rows in first.items()},
        cosines=cosines,
        first=None if found is None else found[0],
        last=None if found is None else found[1],
        gap_degrees=gap,
        **weights,
        kept=kept,
        kept_from=None if kept_from is None else str(kept_from),
    )


def _compare_weights(old: ComparedSide, new: ComparedSide, progress: bool) -> dict[str, Any]:
    """The figures of the weights; one pair of tensors in memory at a time."""
    layout = old.layout
    inside, outside = WeightDrift(), WeightDrift()
    parts: dict[str, str] = {}
    columns = {block: [0, 0] for block in range(1, layout.count + 1)}
    for name, mine, other in tqdm(_pairs(old, new), desc="Weights", unit="tensor", disable=not progress):
        one, two = old.tensor(mine), new.tensor(other)
        layer = name.removesuffix(".weight")
        block = layout.linears.get(layer) if name.endswith(".weight") else None
        if block is None:
            outside.add(name, 0, one, two)
            parts[name] = _part(name, layout.prefix)
            continue
        inside.add(layer, block, one, two)
        columns[block][0] += int((one.float() == two.float()).all(dim=0).sum())
        columns[block][1] += one.shape[1]
    return {
        "weights": inside.blocks(layout.count),
        "modules": inside.modules(),
        "layers": inside.grouped({layer: layer for layer in layout.linears}),
        "elsewhere": outside.grouped(parts),
        "unmoved": [100 * same / total if total else 100.0 for same, total in columns.values()],
    }


def _pairs(old: ComparedSide, new: ComparedSide) -> list[tuple[str, str, str]]:
    """Name of every tensor, and under which it is stored in either model.

    A weight that one of them ties to another and the other stores by itself is compared with the one it is tied to.

    Raises:
        ValueError: other blocks or layers, a tensor that one of them lacks, or one of another shape.
    """
    if old.layout.count != new.layout.count:
        told = f"decoder blocks: {old.layout.count} and {new.layout.count}"
    elif odd := sorted({*old.layout.linears} ^ {*new.layout.linears}):
        told = f"linear layers in them: {len(odd)} are in one alone, {', '.join(odd[:_NAMED])}"
    else:
        told = ""
    if told:
        raise ValueError(f"{old.path} and {new.path} differ in their {told}; expected one architecture.")
    pairs, lacking = [], []
    for name in old.names:
        other = new.holds(name)
        if other is None:
            lacking.append(f"{name} (not in {new.path})")
        else:
            pairs.append((name, name, other))
    paired = {other for _, _, other in pairs}
    for name in new.names:
        mine = old.holds(name)
        if mine is None:
            lacking.append(f"{name} (not in {old.path})")
        elif name not in paired:
            pairs.append((name, mine, name))
    if lacking:
        raise ValueError(
            f"{len(lacking)} tensors are in one of the models alone: {', '.join(lacking[:_NAMED])}; expected two "
            "states of one model."
        )
    return pairs


def _part(name: str, prefix: str) -> str:
    """What a tensor outside the linear layers of the decoder blocks belongs to."""
    words = set(name.split("."))
    if name.startswith(f"{prefix}."):
        return "norms and biases of the blocks"
    for part, names in (("vision tower", VISION), ("projector", PROJECTORS)):
        if words & names:
            return part
    return "embeddings and head" if any("embed" in word or "head" in word for word in words) else "other"


def _processor(old: ComparedSide, new: ComparedSide) -> Any:
    """The processor of the model before; where it cannot be read, that of the one after, with a warning."""
    try:
        return old.processor()
    except (OSError, ValueError) as error:
        lacking = error
    try:
        found = new.processor()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"neither {old.path} nor {new.path} holds a processor, which prompts need: {lacking}; {error}"
        ) from error
    warnings.warn(
        f"the processor of {old.path} cannot be read ({lacking}); the prompts are written by that of {new.path}.",
        stacklevel=3,
    )
    return found


def _states(
    side: ComparedSide,
    processor: Any,
    prompts: Mapping[str, Sequence[Record]],
    batch_size: int,
    blocks: str | None,
    device: str,
    progress: bool,
) -> dict[str, Tensor]:
    """Hidden states of all prompts in one of the models, in memory for as long."""
    module = side.module(processor).to(device).eval()
    found = {}
    with tqdm(total=sum(map(len, prompts.values())), desc=side.path.name, unit="prompt", disable=not progress) as bar:
        for name, records in prompts.items():
            try:
                found[name] = prompt_states(module, MLLMCollator(processor), records, batch_size, blocks)
            except ValueError as error:
                raise ValueError(f"{side.path}, prompts {name!r}: {error}") from error
            bar.update(len(records))
    return found
