"""What a stage learnt, as a file: low-rank updates of the language model and the projector, in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hpa_lightning.files import whole_file
from hpa_lightning.functional import lora_update
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.values import names

STAGES = ("text_alignment", "projector", "visual_tuning", "safety_alignment")
"""The stages in their order."""
BEFORE: dict[str, tuple[str, ...]] = {
    "text_alignment": (),
    "projector": (),
    "visual_tuning": STAGES[:2],
    "safety_alignment": STAGES[:3],
    "safety_alignment_dpo": STAGES[:3],
}
"""Stage -> what the model that it starts with has learnt; the last one is a variant of the last of :data:`STAGES`.

The projector is pretrained between pretrained parts."""

_ADAPTER, _PROJECTOR = "adapter.", "projector."


def stage_file(stage: str, tower: str = "efficientnet", language: str = "smollm2") -> Path:
    """Return where the package has the file of a stage; it may not be there.

    The alignment of the text model knows no tower and is the same for all.
    """
    name = stage if language == "smollm2" else f"{stage}-{language}"
    name = name if stage == STAGES[0] or tower == "efficientnet" else f"{name}-{tower}"
    return Path(str(files(__package__) / "weights" / f"{name}.safetensors"))


def stage_files_in(
    folder: Path, stages: Sequence[str], tower: str = "efficientnet", language: str = "smollm2"
) -> dict[str, Path]:
    """Return those of the stages whose files are in a folder, as ``studies/smol_stages.py`` fills it."""
    paths = {stage: folder / stage_file(stage, tower, language).name for stage in stages}
    return {stage: path for stage, path in paths.items() if path.is_file()}


def save_stage(model: nn.Module, path: str | Path, projector: bool, measured: Mapping[str, float]) -> None:
    """Write a model's adapters, if it has any, and its projector, if that was trained.

    The factors are rounded to bfloat16: the next stage starts from what the file says, and not from what was trained.

    Args:
        model: a :class:`~hpa_lightning.modules.TimmMLLM`, its adapters not merged.
        path: of the file, ``.safetensors``.
        projector: whether it was trained.
        measured: what the stage's end was measured to be, kept beside the weights.
    """
    tensors: dict[str, Tensor] = {}
    for name, factors in lora_layers(model):
        tensors[f"{_ADAPTER}{name}.A"] = factors.lora_a.detach().to(torch.bfloat16)
        tensors[f"{_ADAPTER}{name}.B"] = (factors.lora_b.detach() * factors.scaling).to(torch.bfloat16)
    if projector:
        for name, tensor in model.projector.state_dict().items():  # type: ignore[union-attr]
            tensors[f"{_PROJECTOR}{name}"] = tensor.detach().to(torch.bfloat16)
    with whole_file(path) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, _metadata(measured))


def _metadata(measured: Mapping[str, float]) -> dict[str, str]:
    return {"measured": json.dumps(dict(measured))}


def measured_at(path: str | Path) -> dict[str, float]:
    """Return what was measured at the end of the stage that a file is of."""
    with safe_open(str(path), "pt") as file:
        found: dict[str, float] = json.loads((file.metadata() or {}).get("measured", "{}"))
    return found


@torch.no_grad()
def apply_stage_(model: nn.Module, path: str | Path) -> None:
    """Add a stage's low-rank updates to a model's weights, in fp32, and give it the stage's projector.

    Raises:
        ValueError: tensors that the model has no place for, or of other shapes; nothing is written then.
    """
    modules = dict(model.named_modules())
    updates: dict[str, Tensor] = {}
    projector: dict[str, Tensor] = {}
    with safe_open(str(path), "pt") as file:
        keys = list(file.keys())
        for key in keys:
            if key.startswith(_PROJECTOR):
                projector[key.removeprefix(_PROJECTOR)] = file.get_tensor(key).float()
            elif key.startswith(_ADAPTER) and key.endswith(".A"):
                name = key.removeprefix(_ADAPTER).removesuffix(".A")
                b = file.get_tensor(f"{_ADAPTER}{name}.B").float()
                updates[name] = lora_update(file.get_tensor(key).float(), b, 1.0)
    wrong = [name for name, update in updates.items() if _shape(modules.get(name)) != update.shape]
    own = model.projector.state_dict() if projector else {}  # type: ignore[union-attr]
    wrong += [f"projector.{n}" for n, t in projector.items() if n not in own or own[n].shape != t.shape]
    if wrong or len(keys) != 2 * len(updates) + len(projector):
        raise ValueError(
            f"{path} does not fit the {type(model).__name__}: no place for {names(wrong or keys)}; expected the file "
            "of a stage of this model with the same vision tower."
        )
    for name, update in updates.items():
        weight: Tensor = modules[name].weight
        weight.copy_(weight.float() + update)
    for name, tensor in projector.items():
        own[name].copy_(tensor)


def _shape(module: nn.Module | None) -> torch.Size | None:
    return module.weight.shape if isinstance(module, nn.Linear) else None
