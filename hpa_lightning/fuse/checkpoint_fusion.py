"""Fuses two checkpoints: calibrate on either one, then layer by layer write what is kept."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.functional import RetentionSettings
from hpa_lightning.fuse.diagonals import SAFETY, TASK, FusionOutput, read_diagonals, write_diagonals
from hpa_lightning.fuse.fusion_calibration import Data, calibrate, calibration_records, refusals_among
from hpa_lightning.fuse.fusion_job import FusionJob, changed
from hpa_lightning.fuse.methods import FusionMethod, HarmoniousMethod, RegressionMethod, with_task
from hpa_lightning.fuse.opening import stamps, versions
from hpa_lightning.fuse.output import refuse_inside
from hpa_lightning.fuse.remembered_tasks import read_earlier_tasks
from hpa_lightning.fuse.tensor_files import require_finite
from hpa_lightning.results.run_results import nothing_retained


def fuse_checkpoints(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    safety_data: Data | None = None,
    task_data: Data | None = None,
    *,
    image_folder: str | Path | None = None,
    retention: RetentionSettings | None = None,
    calibration: CalibrationSettings | None = None,
    orthogonal: bool = True,
    target_modules: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    chat_template: str | None = None,
    max_length: int | None = None,
    diagonals: str | Path | None = None,
    save_diagonals: str | Path | None = None,
    method: Literal["hpa", "regression"] = "hpa",
    safety_weight: float | None = None,
    memory_weight: float | None = None,
    rank: int | None = None,
    earlier_tasks: str | Path | None = None,
    save_memory: str | Path | None = None,
    task_name: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the fusion of a model before and after tuning as one Hugging Face folder.

    The safety inputs run through the model before, the task inputs through the one after, one decoder block in memory
    at a time. Then every linear layer of the decoder blocks that tuning has changed gets a new weight: with HPA it
    keeps its retained columns from before and gets the rest of the update without its component along the old weight;
    with regression fusion the update is bent away from the safety inputs and from those of earlier tasks. Whatever else
    the model after holds is kept byte for byte, in the same files; layers of the adapter that are not fused are merged.

    The work is done in ``OUTPUT.partial``, which becomes ``OUTPUT`` when everything is there. After an interruption the
    same call continues: finished blocks are neither calibrated nor fused again.

    Source: HPA (arXiv 2511.20158), Algorithm 1; regression fusion: see
    :func:`hpa_lightning.functional.sketched_regression_map`. Decision: the model before is read in the dtype of the one
    after, as whoever tuned it has. Decision: of a data set larger than asked for, records at even distances are taken.

    Args:
        before: folder of the aligned model, safetensors.
        after: folder of the tuned model, or of a peft adapter (plain LoRA) on ``before``.
        output: folder to be made.
        safety_data: harmful inputs answered with refusals: a LLaVA- or chat-format file, or records.
        task_data: samples of the task that the model was tuned on, likewise.
        image_folder: where relative image paths of both start from; the data file's own folder when ``None``.
        retention: of HPA, shares and weights; the paper's when ``None``.
        calibration: sizes and damping; the paper's when ``None``.
        orthogonal: of HPA, take the component along the old weight out of the update (step 3).
        target_modules: last names of the linear layers to fuse; all in the decoder blocks when ``None``.
        device: where the blocks are computed.
        chat_template: instead of the processor's; ``"plain"`` for a model that has seen none.
        max_length: longest calibration sequence in tokens.
        diagonals: of HPA, a file that ``save_diagonals`` has written. What it holds is not calibrated again, and its
            data are not needed.
        save_diagonals: of HPA, file for diag(H^-1) of every fused layer, under ``safety/`` and ``task/`` and the
            layer's name.
        method: ``"hpa"`` or ``"regression"``.
        safety_weight: of regression fusion, weight of the safety inputs against the task's own; 1 when ``None``.
        memory_weight: of regression fusion, weight of each earlier task's inputs; 1 when ``None``.
        rank: of regression fusion, rows of the sketches of the inputs; 384 when ``None``.
        earlier_tasks: of regression fusion, a file of the tasks that ``before`` has learnt since it was aligned.
        save_memory: of regression fusion, file to be made that remembers those tasks and this one.
        task_name: the task's name in that file; that of the folder ``after`` when ``None``.
        progress: show progress bars.

    Returns:
        The audit that is in ``audit.json``.

    Raises:
        ValueError: models that do not belong together, tensors that are missing, data without answers, images that
            cannot be opened, an output that exists, an interrupted run with other settings, or nothing that tuning has
            changed.
    """
    calibration = (calibration or CalibrationSettings()).settled()
    regression = {"safety_weight": safety_weight, "memory_weight": memory_weight, "rank": rank}
    files_of_regression = {"earlier_tasks": earlier_tasks, "save_memory": save_memory, "task_name": task_name}
    of_hpa = {
        "retention": retention,
        "orthogonal": None if orthogonal else orthogonal,
        "diagonals": diagonals,
        "save_diagonals": save_diagonals,
    }
    _refuse_settings_of_others(method, of_hpa, {**regression, **files_of_regression})
    refuse_inside(output, {"save_memory": save_memory, "save_diagonals": save_diagonals})
    resumed = Path(f"{Path(output)}.partial").exists()  # it may have been killed after its memory was written
    for what, file in (("memory", save_memory), ("diagonals", save_diagonals)):
        if file is not None and Path(file).exists() and not resumed:
            raise ValueError(f"{file} exists already; choose another file for the {what}, or remove it.")
    job = FusionJob(
        before,
        after,
        calibration,
        list(target_modules) if target_modules is not None else None,
        torch.device(device),
        progress,
    )
    fusion: FusionMethod
    earlier = None
    name = Path(os.path.abspath(after)).name if task_name is None else task_name
    if method == "hpa":
        fusion = HarmoniousMethod(
            retention or RetentionSettings(), orthogonal, calibration.damping, calibration.normalized
        )
    else:
        earlier = read_earlier_tasks(job, earlier_tasks, save_memory, name)
        given = {name: value for name, value in regression.items() if value is not None}
        settings_of = {"safety_weight": 1.0, "memory_weight": 1.0, "rank": 384, **given}
        fusion = RegressionMethod(damping=calibration.damping, earlier=earlier, **settings_of)  # type: ignore[arg-type]
    data = {SAFETY: safety_data, TASK: task_data}
    known: dict[str, dict[str, Tensor]] = {SAFETY: {}, TASK: {}}
    if diagonals is not None:
        widths = {name: layer.in_features for name, layer in job.by_name.items()}
        known = read_diagonals(diagonals, widths, job.calibration)
    records = {
        what: calibration_records(what, data[what], image_folder, job) for what in (SAFETY, TASK) if not known[what]
    }
    settings = {
        "method": method,
        **fusion.settings,
        "calibration": dataclasses.asdict(job.calibration),
        "target modules": job.target_modules,
        "chat template": chat_template,
        "longest sequence": max_length,
    }
    files = [*job.before.inputs(), *job.after.inputs()]
    files += [Path(item) for item in (safety_data, task_data, diagonals, earlier_tasks) if isinstance(item, str | Path)]
    with FusionOutput(
        output,
        {
            **settings,
            "version": version("hpa-lightning"),
            "inputs": stamps(files),
            "records": {what: [record.id for record in chosen] for what, chosen in records.items()},
        },
    ) as result:
        result.copy_small(job.before, job.after)
        result.copy_weights([job.before], job.after, job.merged)
        for what, checkpoint in ((SAFETY, job.before), (TASK, job.after)):
            for block in range(job.blocks):
                if known[what] and not result.has_diagonals(what, block):
                    result.save_diagonals(
                        what, block, {layer.name: known[what][layer.name] for layer in job.layers[block]}
                    )
            if what in records:
                calibrate(what, checkpoint, records[what], job, fusion, result, chat_template, max_length)
        if save_diagonals is not None:
            fused_blocks = [block for block in range(job.blocks) if job.layers[block]]
            write_diagonals(Path(save_diagonals), result, fused_blocks, job.calibration)
        for block in tqdm(range(job.blocks), desc="Fusing", disable=not progress):
            if not result.has_part(block):
                _fuse_block(block, job, fusion, result)
        if save_memory is not None:
            found: dict[str, Tensor] = {}
            for block in range(job.blocks):
                found |= result.load_diagonals(TASK, block) if job.layers[block] else {}
            size = fusion.rank if isinstance(fusion, RegressionMethod) else 0
            with_task(earlier, name, job.by_name, found, job.blocks, job.model_type, size).write(save_memory)
        layers = result.audit(job.blocks)
        fused = [entry for entry in layers if len(entry) > 2]  # more than its block and name
        audit = {
            "before": str(before),
            "after": str(after),
            "versions": versions(),
            "settings": settings,
            "diagonals": str(diagonals) if diagonals is not None else None,
            "samples": {what: len(chosen) for what, chosen in records.items()},
            "safety_answers_refused": refusals_among(records[SAFETY]) if SAFETY in records else None,
            "unchanged": [entry["module"] for entry in layers if entry not in fused],
            "layers": fused,
        }
        if method == "hpa" and (reported := nothing_retained(fused)):
            warnings.warn(f"{output}: {reported}", stacklevel=2)
        result.finish(job.after, audit)
        return audit


def _refuse_settings_of_others(method: str, of_hpa: Mapping[str, Any], of_regression: Mapping[str, Any]) -> None:
    """Refuse a method that there is not, and settings that the method does not use."""
    if method not in ("hpa", "regression"):
        raise ValueError(f"method is {method!r}; expected 'hpa' or 'regression'.")
    others, other = (of_regression, "regression") if method == "hpa" else (of_hpa, "hpa")
    unused = [name for name, value in others.items() if value is not None]
    if unused:
        raise ValueError(f"{', '.join(unused)}: a setting of method {other!r}, and the method is {method!r}.")


def _fuse_block(block: int, job: FusionJob, fusion: FusionMethod, result: FusionOutput) -> None:
    audit: list[dict[str, Any]] = []

    def fused() -> Iterator[tuple[Any, Tensor]]:
        found = {what: result.load_diagonals(what, block) for what in (SAFETY, TASK)} if job.layers[block] else {}
        for layer in job.layers[block]:
            name = f"{layer.name}.weight"
            entry: dict[str, Any] = {"layer": layer.layer, "module": layer.name}
            audit.append(entry)
            old, new = job.weights(name, job.device)
            if not changed(old, new):
                continue
            try:
                weight, report = fusion.fuse(layer, job.blocks, old, new, found[SAFETY], found[TASK])
                require_finite(name, weight, result.folder)  # the cast to half precision may overflow
            except ValueError as error:
                raise ValueError(f"{layer.name}: {error}") from error
            entry.update(report)
            yield job.after.stored(name), weight

    result.write_part(block, fused(), audit)
