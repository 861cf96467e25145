"""Merges two checkpoints, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.fuse.adapted import AdaptedCheckpoint, is_adapter
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.opening import file_digests, open_checkpoint, stamps, versions, warn_of_left_out
from hpa_lightning.fuse.output import MERGE_FILE, PartialOutput
from hpa_lightning.fuse.tensor_files import StoredTensor, require_finite
from hpa_lightning.merge.merge_settings import MergeSettings
from hpa_lightning.merge.tensor_pairing import PairedModels, PairedTensor

_PART_BYTES = 1 << 27  # of the tensors between two marks of progress


def merge_checkpoints(
    task: str | Path,
    safety: str | Path,
    output: str | Path,
    base: str | Path | None = None,
    *,
    settings: MergeSettings | None = None,
    keep: Sequence[str] = (),
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Write the merged weights of a task-tuned and a safety-tuned model as one Hugging Face folder.

    Every floating-point tensor is merged, the vision tower's, norms and biases too, one at a time in memory; where all
    models agree it stays as it is. Files, dtypes, configuration and processor are the task-tuned model's (with an
    adapter, its base's). A tensor that cannot be merged is refused by name; see :class:`PairedModels`.

    The work is done in ``OUTPUT.partial``, which becomes ``OUTPUT`` when everything is there. After an interruption the
    same call continues.

    Sources: linear merging of a safety-tuned and a task-tuned model, arXiv 2410.07571; the other methods, see
    :mod:`hpa_lightning.functional`.

    Args:
        task: folder of the task-tuned model, or of a peft adapter (plain LoRA) on ``base``.
        safety: of the safety-tuned one, likewise.
        output: folder to be made.
        base: folder of the model that both were tuned from: for adapters, and for the methods that merge task vectors.
        settings: method and numbers; linear at one half when ``None``.
        keep: names or patterns of tensors that stay the task-tuned model's.
        device: where tensors are merged.
        progress: show progress bars.

    Returns:
        What is in ``merge.json``: settings, versions, the inputs' files with their SHA-256, and for every merged
        tensor how far it is from the task-tuned and from the safety-tuned one, relative to these.

    Raises:
        ValueError: no base where one is needed, or one that nothing uses; models that do not belong together; weights
            that are not finite; an output that exists; an interrupted run with other settings; or models that do not
            differ.
    """
    settings = settings or MergeSettings()
    models = open_models(task, safety, base, settings, keep)
    files = list(dict.fromkeys(file for checkpoint in models.checkpoints for file in checkpoint.inputs()))
    described = dataclasses.asdict(settings)
    run = {**described, "keep": list(keep), "version": version("hpa-lightning"), "inputs": stamps(files)}
    parts = list(_parts(models))
    with PartialOutput(output, run) as result:
        result.copy_small(models.others["safety"], models.task)
        adapted = models.task.adapted if isinstance(models.task, AdaptedCheckpoint) else []
        result.copy_weights(models.others.values(), models.task, adapted)
        sizes = [sum(_bytes(models.task.stored(pair.name)) for pair in part) for part in parts]
        with tqdm(total=sum(sizes), desc="Merging", unit="B", unit_scale=True, disable=not progress) as bar:
            for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
                if not result.has_part(number):
                    audit: list[dict[str, Any]] = []
                    result.write_part(number, _merged(part, models, settings, device, audit), audit)
                bar.update(size)
        tensors = result.audit(len(parts))
        audit_of_all = {
            "task": str(task),
            "safety": str(safety),
            "base": None if base is None else str(base),
            "settings": described,
            "versions": versions(),
            "inputs": file_digests(files, progress),
            "kept": models.kept,
            "unchanged": [entry["tensor"] for entry in tensors if "from_task" not in entry],
            "tensors": [entry for entry in tensors if "from_task" in entry],
        }
        result.finish(models.task, audit_of_all, MERGE_FILE)
        return audit_of_all


class _Models(PairedModels):
    """The models of a merge, checked against each other."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [self.task, *self.others.values()]


def open_models(
    task: str | Path, safety: str | Path, base: str | Path | None, settings: MergeSettings, keep: Sequence[str] = ()
) -> _Models:
    """Open and pair the models of a merge.

    Raises:
        ValueError: see :func:`merge_checkpoints`.
    """
    adapters = [folder for folder in (task, safety) if is_adapter(folder)]
    if settings.needs_base and base is None:
        raise ValueError(
            f"{settings.method} merges what was added to a base; expected the folder of the model that both were tuned "
            "from (--base). linear and slerp need none."
        )
    if base is not None and not settings.needs_base and not adapters:
        raise ValueError(
            f"{settings.method} of two whole models uses no base; leave out {base}, or choose another method."
        )
    opened = {"task": open_checkpoint(task, base), "safety": open_checkpoint(safety, base)}
    if settings.needs_base and base is not None:
        opened["base"] = open_checkpoint(base, None)
    warn_of_left_out(opened.values())
    models = _Models(opened.pop("task"), opened, keep)
    if not any(_differ(models.read(pair)) for pair in models.merged):
        raise ValueError(f"no tensor to be merged differs between {task} and {safety}; there is nothing to merge.")
    return models


def _differ(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the task-tuned and the safety-tuned model's tensor differ."""
    wide = torch.promote_types(tensors["task"].dtype, tensors["safety"].dtype)
    return not torch.equal(tensors["task"].to(wide), tensors["safety"].to(wide))


def _parts(models: PairedModels) -> Iterator[list[PairedTensor]]:
    """The pairs in lists of about `_PART_BYTES`."""
    part: list[PairedTensor] = []
    size = 0
    for pair in models.merged:
        part.append(pair)
        size += _bytes(models.task.stored(pair.name))
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _bytes(place: StoredTensor) -> int:
    return place.end - place.start


def _merged(
    part: Sequence[PairedTensor],
    models: PairedModels,
    settings: MergeSettings,
    device: str | torch.device,
    audit: list[dict[str, Any]],
) -> Iterator[tuple[StoredTensor, Tensor]]:
    for pair in part:
        entry: dict[str, Any] = {"tensor": pair.name}
        audit.append(entry)
        tensors = models.read(pair, device)
        task, safety, base = tensors["task"], tensors["safety"], tensors.get("base")
        if not _differ(tensors) and (base is None or not _differ({"task": task, "safety": base})):
            continue
        place = models.task.stored(pair.name)
        try:
            merged = settings.merge(task, safety, base, named_generator(settings.seed, "dare", models.drawn_as(pair)))
            written = merged.to(place.dtype)
            require_finite(pair.name, written, models.task.folder)  # the cast to half precision may overflow
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from error
        entry |= {"from_task": _distance(merged, task), "from_safety": _distance(merged, safety)}
        yield place, written


def _distance(merged: Tensor, weight: Tensor) -> float:
    """``||merged - weight|| / ||weight||``, Frobenius; of a weight of zeros ``||merged||``."""
    wide = weight.to(merged.dtype)
    length = float(torch.linalg.vector_norm(wide))
    return float(torch.linalg.vector_norm(merged - wide)) / (length or 1.0)
