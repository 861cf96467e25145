"""Which parts of a multimodal model are trained: chosen by name, refused where a name matches nothing, and told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from torch import nn

from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.values import names, shown

VISION = frozenset({"vision_tower", "visual", "vision_model", "vision_encoder", "vision_backbone", "image_encoder"})
"""Last names of the modules that are vision towers."""
PROJECTORS = frozenset(
    {
        "projector", "multi_modal_projector", "mm_projector", "connector", "modality_projection", "aligner", "merger",
        "vision_projection", "visual_projection", "image_newline",
    }
)  # fmt: skip
"""Last names of what is between tower and language model."""


@dataclass(frozen=True)
class TrainableParts:
    """What is trained in full; everything else is frozen, but for LoRA's adapters where there are any.

    Args:
        projector: what is between the vision tower and the language model.
        language_model: all of the language model: embeddings, decoder blocks, last norm, head.
        blocks: first and last decoder block, counted from 1, both included: a part of the language model.
        vision_tower: the vision tower.
        names: further parameters, as patterns of their dotted names (``"*.q_proj.weight"``, ``"lm_head.*"``).

    Raises:
        ValueError: nothing is chosen, or blocks that are no range.

    Example:
        >>> TrainableParts(projector=True)                                    # LLaVA's first stage
        TrainableParts(projector=True, language_model=False, blocks=None, vision_tower=False, names=None)
    """

    projector: bool = False
    language_model: bool = False
    blocks: tuple[int, int] | None = None
    vision_tower: bool = False
    names: list[str] | None = None

    def __post_init__(self) -> None:
        if not any(getattr(self, field.name) for field in fields(self)):
            raise ValueError(
                "trainable names no part; expected projector, language_model, blocks, vision_tower or names."
            )
        if self.blocks is not None:
            first_last = tuple(self.blocks)
            if len(first_last) != 2 or not 1 <= first_last[0] <= first_last[1]:
                raise ValueError(
                    f"trainable.blocks is {shown(list(first_last))}; expected [first, last] with 1 <= first <= last."
                )
            if self.language_model:
                raise ValueError("trainable has language_model and blocks; expected one: blocks are a part of it.")
            object.__setattr__(self, "blocks", first_last)  # YAML brings a list


def select_parts(model: nn.Module, parts: TrainableParts, has_lora: bool) -> None:
    """Set ``requires_grad`` of all parameters by ``parts``; adapters that are there already are left as they are.

    Raises:
        ValueError: a part that the model does not have, blocks beyond its last one, a name that matches no parameter;
            or the language model in full beside LoRA on it.
    """
    if has_lora and (parts.language_model or parts.blocks):
        what = "language_model" if parts.language_model else "blocks"
        raise ValueError(f"trainable.{what} trains weights that lora keeps fixed beside its adapters; leave one out.")
    named = dict(model.named_parameters())
    chosen = set(_named(model, named, parts))
    for name, parameter in named.items():
        if not (has_lora and _is_adapter(name)):
            parameter.requires_grad_(name in chosen)


def _named(model: nn.Module, parameters: dict[str, nn.Parameter], parts: TrainableParts) -> Iterable[str]:
    modules = [name for name, _ in model.named_modules()]
    towers, projectors = _owners(modules, VISION), _owners(modules, PROJECTORS)
    if parts.vision_tower:
        yield from _below(parameters, towers, "vision_tower", VISION, modules, besides=projectors)
    if parts.projector:
        yield from _below(parameters, projectors, "projector", PROJECTORS, modules)
    if parts.language_model:
        yield from (name for name in parameters if not _is_below(name, [*towers, *projectors]))
    if parts.blocks is not None:
        prefix, blocks = find_decoder_blocks(model)
        first, last = parts.blocks
        if last > len(blocks):
            raise ValueError(f"trainable.blocks is [{first}, {last}], but {prefix!r} has {len(blocks)} blocks.")
        yield from (name for name in parameters if _is_below(name, [f"{prefix}.{i}" for i in range(first - 1, last)]))
    for pattern in parts.names or ():
        found = [name for name in parameters if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"trainable.names: {pattern!r} matches no parameter; expected patterns of names such as "
                f"{names(list(parameters)[:6])}."
            )
        yield from found


def _owners(modules: Iterable[str], kinds: frozenset[str]) -> list[str]:
    """The topmost modules with one of the names: a tower within a tower is a part of it."""
    found: list[str] = []
    for name in modules:
        if name.rpartition(".")[2] in kinds and not _is_below(name, found):
            found.append(name)
    return found


def _below(
    parameters: Iterable[str],
    owners: list[str],
    part: str,
    kinds: frozenset[str],
    modules: list[str],
    besides: list[str] | None = None,
) -> list[str]:
    found = [name for name in parameters if _is_below(name, owners) and not _is_below(name, besides or [])]
    if not found:
        tops = sorted({".".join(name.split(".")[:2]) for name in modules if name})
        raise ValueError(
            f"trainable.{part}: the model has no module named {' or '.join(sorted(kinds)[:3])} or the like; name its "
            f"parameters in trainable.names. Its parts are {names(tops[:8])}."
        )
    return found


def _is_below(name: str, owners: Iterable[str]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".osf_svd_params." in name or name.endswith(".router")


def describe_trainable(model: nn.Module) -> str:
    """What trains and how many parameters, in one line.

    Returns:
        Such as ``"trains 98,560 of 4,084,352 parameters (2.4 %): projector 98,560; frozen: vision tower, ..."``.
    """
    modules = [name for name, _ in model.named_modules()]
    towers, projectors = _owners(modules, VISION), _owners(modules, PROJECTORS)
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = "language model"
        if _is_adapter(name):
            part = "adapters"
        elif _is_below(name, projectors):
            part = "projector"
        elif _is_below(name, towers):
            part = "vision tower"
        count = counts.setdefault(part, [0, 0])
        count[0] += parameter.numel() * parameter.requires_grad
        count[1] += parameter.numel()
    trained = sum(count[0] for count in counts.values())
    total = sum(count[1] for count in counts.values())
    said = [
        f"{part} {some:,}" + ("" if some == every else f" of {every:,}")
        for part, (some, every) in counts.items()
        if some
    ]
    frozen = [part for part, (some, _) in counts.items() if not some]
    return (
        f"trains {trained:,} of {total:,} parameters ({100 * trained / max(total, 1):.1f} %): "
        + (", ".join(said) or "nothing")
        + (f"; frozen: {', '.join(frozen)}" if frozen else "")
        + "."
    )
