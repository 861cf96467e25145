"""Fuses two checkpoints with HPA: calibrate on either one, then layer by layer write what is kept."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hpa_lightning import functional as F
from hpa_lightning.calibration import shared_inverse_diagonals, visit_hessians
from hpa_lightning.callbacks.batches import valid_positions
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.data.bad_records import naming_failure
from hpa_lightning.data.batch_order import named_generator
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.record import Record, message_text, open_image
from hpa_lightning.functional import HessianAccumulator, RetentionSettings
from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.diagonals import SAFETY, TASK, FusionOutput, read_diagonals, write_diagonals
from hpa_lightning.fuse.opening import open_checkpoint, stamps, versions, warn_of_left_out
from hpa_lightning.fuse.pairing import check_architectures, check_layers, check_settings
from hpa_lightning.fuse.streaming import StreamedModel, empty_model
from hpa_lightning.fuse.tensor_files import require_finite
from hpa_lightning.metrics.judges import StringRefusalJudge
from hpa_lightning.modules.load_pretrained import load_processor
from hpa_lightning.modules.tuned_linear import TunedLinear, find_tuned_linears
from hpa_lightning.results.run_results import nothing_retained

Data = str | Path | Sequence[Record]


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
    progress: bool = False,
) -> dict[str, Any]:
    """Write the HPA fusion of a model before and after tuning as one Hugging Face folder.

    The safety inputs run through the model before, the task inputs through the one after, one decoder block in memory
    at a time. Then every linear layer of the decoder blocks that tuning has changed keeps its retained columns from
    before and gets the rest of the update without its component along the old weight. Whatever else the model after
    holds is kept byte for byte, in the same files; layers of the adapter that are not fused are merged.

    The work is done in ``OUTPUT.partial``, which becomes ``OUTPUT`` when everything is there. After an interruption the
    same call goes on: finished blocks are neither calibrated nor fused again.

    Source: HPA (arXiv 2511.20158), Algorithm 1. Decision: the model before is read in the dtype of the one after, as
    whoever tuned it has. Decision: of a data set larger than asked for, records at even distances are taken.

    Args:
        before: folder of the aligned model, safetensors.
        after: folder of the tuned model, or of a peft adapter (plain LoRA) on ``before``.
        output: folder to be made.
        safety_data: harmful inputs answered with refusals: a LLaVA- or chat-format file, or records.
        task_data: samples of the task that the model was tuned on, likewise.
        image_folder: where relative image paths of both start from; the data file's own folder when ``None``.
        retention: shares and weights; the paper's when ``None``.
        calibration: sizes and damping; the paper's when ``None``.
        orthogonal: take the component along the old weight out of the update (step 3).
        target_modules: last names of the linear layers to fuse; all in the decoder blocks when ``None``.
        device: where the blocks are computed.
        chat_template: in place of the processor's; ``"plain"`` for a model that has seen none.
        max_length: longest calibration sequence in tokens.
        diagonals: a file that ``save_diagonals`` has written. What it holds is not calibrated again, and its data are
            not needed.
        save_diagonals: file for diag(H^-1) of every fused layer, under ``safety/`` and ``task/`` and the layer's name.
        progress: show progress bars.

    Returns:
        The audit that stands in ``audit.json``.

    Raises:
        ValueError: models that do not belong together, tensors that are missing, data without answers, images that
            cannot be opened, an output that exists, an interrupted run with other settings, or nothing that tuning has
            changed.
    """
    job = _Job(
        before,
        after,
        retention or RetentionSettings(),
        calibration or CalibrationSettings(),
        orthogonal,
        list(target_modules) if target_modules is not None else None,
        torch.device(device),
        progress,
    )
    data = {SAFETY: safety_data, TASK: task_data}
    known: dict[str, dict[str, Tensor]] = {SAFETY: {}, TASK: {}}
    if diagonals is not None:
        widths = {layer.name: layer.in_features for layers in job.layers for layer in layers}
        known = read_diagonals(diagonals, widths, job.calibration)
    records = {what: _records(what, data[what], image_folder, job) for what in (SAFETY, TASK) if not known[what]}
    settings = {
        "retention": dataclasses.asdict(job.retention),
        "calibration": dataclasses.asdict(job.calibration),
        "orthogonal": orthogonal,
        "target modules": job.target_modules,
        "chat template": chat_template,
        "longest sequence": max_length,
    }
    files = [*job.before.inputs(), *job.after.inputs()]
    files += [Path(item) for item in (safety_data, task_data, diagonals) if isinstance(item, str | Path)]
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
                _calibrate(what, checkpoint, records[what], job, result, chat_template, max_length)
        if save_diagonals is not None:
            fused_blocks = [block for block in range(job.blocks) if job.layers[block]]
            write_diagonals(Path(save_diagonals), result, fused_blocks, job.calibration)
        for block in tqdm(range(job.blocks), desc="Fusing", disable=not progress):
            if not result.has_part(block):
                _fuse_block(block, job, result)
        layers = result.audit(job.blocks)
        fused = [entry for entry in layers if "retained" in entry]
        audit = {
            "before": str(before),
            "after": str(after),
            "versions": versions(),
            "settings": settings,
            "diagonals": str(diagonals) if diagonals is not None else None,
            "samples": {what: len(chosen) for what, chosen in records.items()},
            "safety_answers_refused": _refused(records[SAFETY]) if SAFETY in records else None,
            "unchanged": [entry["module"] for entry in layers if "retained" not in entry],
            "layers": fused,
        }
        if reported := nothing_retained(fused):
            warnings.warn(f"{output}: {reported}", stacklevel=2)
        result.finish(job.after, audit)
        return audit


class _Job:
    """The two checkpoints, checked against each other, and the layers to fuse."""

    def __init__(
        self,
        before: str | Path,
        after: str | Path,
        retention: RetentionSettings,
        calibration: CalibrationSettings,
        orthogonal: bool,
        target_modules: list[str] | None,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.retention = retention
        self.calibration = calibration
        self.orthogonal = orthogonal
        self.target_modules = target_modules
        self.device = device
        self.progress = progress
        self.before = Checkpoint(before)
        self.after = open_checkpoint(after, before)
        found = []
        for checkpoint in (self.before, self.after):
            model = empty_model(checkpoint.config, checkpoint.dtype)
            checkpoint.bind(model)
            found.append(find_tuned_linears(model, target_modules=target_modules))
        both, counts = [linears for _, linears in found], [len(blocks) for blocks, _ in found]
        configs, names = (self.before.config, self.after.config), ("before", "after")
        check_architectures(configs, names)
        check_layers(both, counts, names)
        check_settings(configs, names, "the fused model gets the one after. Each calibration runs with its own.")
        blocks, linears = found[1]
        warn_of_left_out((self.before, self.after))
        weights = {f"{linear.name}.weight" for linear in linears}
        adapted = set(self.after.adapted) if isinstance(self.after, AdaptedCheckpoint) else weights
        self.blocks = len(blocks)
        self.layers: list[list[TunedLinear]] = [[] for _ in blocks]
        for linear in linears:
            if f"{linear.name}.weight" in adapted:
                self.layers[linear.layer - 1].append(linear)
        self.merged = sorted(adapted - weights)
        weights_of = [f"{linear.name}.weight" for layers in self.layers for linear in layers]
        for checkpoint in (self.before, self.after):
            checkpoint.need(weights_of)
        if not any(_changed(*self.weights(name)) for name in weights_of):
            raise ValueError(
                f"no linear layer of the decoder blocks differs between {self.before.folder} and {after}; there is "
                "nothing to fuse."
            )

    def weights(self, name: str, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """The weight before, in the dtype that is written, and the one after."""
        return self.before.tensor(name, device).to(self.after.stored(name).dtype), self.after.tensor(name, device)


def _changed(old: Tensor, new: Tensor) -> bool:
    return not torch.equal(old.to(new.dtype), new)


def _calibrate(
    what: str,
    checkpoint: Checkpoint,
    records: Sequence[Record],
    job: _Job,
    result: FusionOutput,
    chat_template: str | None,
    max_length: int | None,
) -> None:
    """Run the records through the model and keep diag(H^-1) of each block that is not finished."""
    pending = [block for block in range(job.blocks) if job.layers[block] and not result.has_diagonals(what, block)]
    if not pending:
        return
    stream = StreamedModel(checkpoint, job.device)
    collator = MLLMCollator(_processor(checkpoint, job), max_length, chat_template)
    modules = dict(stream.model.named_modules())
    linears: dict[str, nn.Module] = {
        layer.name: modules[layer.name] for block in pending for layer in job.layers[block]
    }
    block_of = {layer.name: block for block in pending for layer in job.layers[block]}
    batches = list(_batches(records, collator, job, checkpoint.dtype))
    size = job.calibration.batch_size
    names = {id(batch): [one.where for one in records[i * size : (i + 1) * size]] for i, batch in enumerate(batches)}

    def forward(batch: dict[str, Tensor]) -> None:
        with naming_failure(lambda: names[id(batch)]):
            stream.forward(batch)

    def keep(accumulators: Mapping[str, HessianAccumulator]) -> None:
        shared = shared_inverse_diagonals(accumulators, job.calibration.normalized)
        diagonals = {name: diagonal.clone() for name, diagonal in shared.items()}  # a file holds no shared memory
        result.save_diagonals(what, block_of[next(iter(diagonals))], diagonals)

    bar = tqdm(total=job.blocks, desc=f"Calibrating ({what})", disable=not job.progress)

    def advance(done: int, total: int) -> None:
        bar.update()

    with bar, stream:
        visit_hessians(
            forward,
            batches,
            stream.blocks,
            linears,
            keep,
            damping=job.calibration.damping,
            valid_positions=valid_positions,
            on_block=advance,
        )


def _fuse_block(block: int, job: _Job, result: FusionOutput) -> None:
    audit: list[dict[str, Any]] = []

    def fused() -> Iterator[tuple[Any, Tensor]]:
        diagonals = {what: result.load_diagonals(what, block) for what in (SAFETY, TASK)} if job.layers[block] else {}
        for layer in job.layers[block]:
            name = f"{layer.name}.weight"
            entry: dict[str, Any] = {"layer": layer.layer, "module": layer.name}
            audit.append(entry)
            old, new = job.weights(name, job.device)
            if not _changed(old, new):
                continue
            try:
                safety, tasks = (diagonals[what][layer.name].to(job.device) for what in (SAFETY, TASK))
                weight, fusion = F.harmonious_fusion(
                    old,
                    new,
                    safety,
                    tasks,
                    layer.layer,
                    job.blocks,
                    job.retention,
                    orthogonal=job.orthogonal,
                    generator=named_generator(job.retention.seed, "random columns", layer.name),
                )
                require_finite(name, weight, result.folder)  # the cast to half precision may overflow
            except ValueError as error:
                raise ValueError(f"{layer.name}: {error}") from error
            entry.update(fusion)
            yield job.after.stored(name), weight

    result.write_part(block, fused(), audit)


# -- data ------------------------------------------------------------------------------------------------------------


def _records(what: str, data: Data | None, image_folder: str | Path | None, job: _Job) -> Sequence[Record]:
    expected = {
        SAFETY: "harmful inputs with the refusals that the aligned model gives",
        TASK: "samples of the task with their answers",
    }[what]
    if data is None:
        raise ValueError(f"no {what} data; expected {expected}, or diagonals of an earlier run in their place.")
    records = as_records(data, image_folder, f"{what} data")
    size = {SAFETY: job.calibration.safety_samples, TASK: job.calibration.task_samples}[what]
    if len(records) > size:
        records = [records[position * len(records) // size] for position in range(size)]
    for record in records:
        if not record.ends_with_answer:
            raise ValueError(f"{what} data, {record.where}: there is no answer; expected {expected}.")
        for image in record.images:  # here, before anything is computed, and not when the record's turn comes
            open_image(image, f"{what} data, {record.where}")
    return records


def _batches(
    records: Sequence[Record], collator: MLLMCollator, job: _Job, dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    size = job.calibration.batch_size
    for start in range(0, len(records), size):
        batch = collator.train(records[start : start + size])
        yield {
            key: value.to(job.device, dtype if value.is_floating_point() else value.dtype)
            for key, value in batch.items()
        }


def _processor(checkpoint: Checkpoint, job: _Job) -> Any:
    """The checkpoint's processor, or the other's where it has none."""
    other = job.after if checkpoint is job.before else job.before
    for folder in (checkpoint.folder, other.folder):
        try:
            return load_processor(str(folder), None, None)
        except (OSError, ValueError) as error:
            failure = error
    raise ValueError(f"neither {checkpoint.folder} nor {other.folder} holds a processor: {failure}") from failure


def _refused(records: Sequence[Record]) -> int:
    return sum(StringRefusalJudge()([message_text(record.messages[-1]) for record in records]))
