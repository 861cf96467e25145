"""What a fusion calibrates with, and the pass over it: one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hpa_lightning.calibration import visit_inputs
from hpa_lightning.data.bad_records import naming_failure
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.record import Record, message_text, open_image
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.diagonals import SAFETY, TASK, FusionOutput
from hpa_lightning.fuse.fusion_job import FusionJob
from hpa_lightning.fuse.methods import FusionMethod
from hpa_lightning.fuse.processor_files import read_processor
from hpa_lightning.fuse.streaming import StreamedModel
from hpa_lightning.metrics.judges import StringRefusalJudge

Data = str | Path | Sequence[Record]


def calibrate(
    what: str,
    checkpoint: Checkpoint,
    records: Sequence[Record],
    job: FusionJob,
    fusion: FusionMethod,
    result: FusionOutput,
    chat_template: str | None,
    max_length: int | None,
) -> None:
    """Run the records through the model and keep what the method takes of each block that is not finished."""
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

    def keep(accumulators: Mapping[str, Any]) -> None:
        block = block_of[next(iter(accumulators))]  # before the method uses them up
        result.save_diagonals(what, block, fusion.found(accumulators))

    bar = tqdm(total=job.blocks, desc=f"Calibrating ({what})", disable=not job.progress)

    def advance(done: int, total: int) -> None:
        bar.update()

    with bar, stream:
        visit_inputs(
            forward,
            batches,
            stream.blocks,
            linears,
            keep,
            fusion.accumulate,
            valid_positions=job.calibration.counted(what),
            on_block=advance,
        )


def calibration_records(
    what: str, data: Data | None, image_folder: str | Path | None, job: FusionJob
) -> Sequence[Record]:
    """Read the records that a fusion calibrates with; of more than are asked for, those at even distances.

    Raises:
        ValueError: no data, a record without an answer, or a picture that cannot be opened.
    """
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
    records: Sequence[Record], collator: MLLMCollator, job: FusionJob, dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    size = job.calibration.batch_size
    for start in range(0, len(records), size):
        batch = collator.train(records[start : start + size])
        yield {
            key: value.to(job.device, dtype if value.is_floating_point() else value.dtype)
            for key, value in batch.items()
        }


def _processor(checkpoint: Checkpoint, job: FusionJob) -> Any:
    """The checkpoint's processor, or the other's where it has none; the other's image processor to its tokenizer."""
    other = job.after if checkpoint is job.before else job.before
    for one, beside in ((checkpoint, other), (other, None)):
        try:
            return read_processor(one, beside)
        except (OSError, ValueError) as error:
            failure = error
    raise ValueError(f"neither {checkpoint.folder} nor {other.folder} holds a processor: {failure}") from failure


def refusals_among(records: Sequence[Record]) -> int:
    """How many of the answers read like refusals."""
    return sum(StringRefusalJudge()([message_text(record.messages[-1]) for record in records]))
