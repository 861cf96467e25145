"""The stages that align the benchmark's model, teach it to see, and align it again; each an ordinary fit."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.data import CVITDataModule, EvaluationSet, PromptFile, Record, Task, read_records
from hpa_lightning.data.tasks import Objective
from hpa_lightning.files import write_text
from hpa_lightning.modules import (
    LoraSettings,
    MLLMModule,
    PreferenceModule,
    PreferenceSettings,
    TaskSchedule,
    TrainableParts,
)
from hpa_lightning.modules.emulated_bfloat16 import emulate_where_slow
from hpa_lightning.parsing import read_text
from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.load_checks import SENTENCES, perplexity
from hpa_lightning.smol.model_build import Language, Tower, model_of_stages
from hpa_lightning.smol.refusals import complied, refusal
from hpa_lightning.smol.request_forms import Form
from hpa_lightning.smol.safety_records import alignment_records, ordinary_records
from hpa_lightning.smol.stage_weights import BEFORE, measured_at, save_stage, stage_file, stage_files_in
from hpa_lightning.smol.xstest_file import without_xstest
from hpa_lightning.values import names

BATCH = 8
"""Samples of an optimizer step."""


@dataclass(frozen=True)
class Stage:
    """Settings of a stage.

    Args:
        steps: optimizer steps, of :data:`BATCH` samples.
        learning_rate: the peak; it rises over 5 % of the steps and falls linearly to 0.
        rank: of the adapters on all linear layers of the language model; 0: the projector alone is trained.
        harm: of which forms of alignment data the stage is: ``"text"``, ``"all"`` (words alone, and beside a picture),
            or none of them (``""``).
        seeing: share of samples that are safe visual instructions.
        measured: forms of the requests that it is measured with; none: the stage does not change what is said to them.
        objective: answers are learnt, or preferences: a refusal of what is harmful, an answer to what is not.
        sft_weight: of preferences, weight of the preferred answer's own cross-entropy.
    """

    steps: int
    learning_rate: float
    rank: int = 0
    harm: str = ""
    seeing: float = 0.0
    measured: tuple[Form, ...] = ("text", "picture")
    objective: Objective = "answer"
    sft_weight: float = 0.0


SETTINGS: dict[str, Stage] = {
    "text_alignment": Stage(60, 1e-3, rank=8, harm="text", measured=("text",)),
    "projector": Stage(140, 2e-3, seeing=1.0, measured=()),
    "visual_tuning": Stage(40, 7e-4, rank=8, seeing=0.85),
    "safety_alignment": Stage(200, 1.5e-3, rank=4, harm="all", seeing=0.2),
    "safety_alignment_dpo": Stage(200, 1.5e-3, rank=2, harm="all", seeing=0.2, objective="preference", sft_weight=1.0),
}


def stage_records(data: Path, find: Find, stage: str) -> list[Record]:
    """Return what a stage trains on.

    ``text_alignment``: refusals and harmless requests in words. ``projector``: sentences about pictures that no task
    has. ``visual_tuning``: the same, and harmless requests in words, nothing harmful. ``safety_alignment``: refusals
    and harmless requests in all forms, and sentences about pictures; ``safety_alignment_dpo``: the same as pairs.

    Args:
        data: a folder of ``hpa-lightning benchmark build smol``.
        find: where the packages of the harmful requests are.
        stage: one of :data:`~hpa_lightning.smol.stage_weights.BEFORE`.
    """
    settings = SETTINGS[stage]
    if settings.harm == "text":
        return alignment_records(find)
    told = [
        record
        for path in sorted((data / "tasks").glob("*/stages.json"))
        if read_text(path).strip() != "[]"  # a task whose pictures another one has told of
        for record in read_records(path, image_folder=str(data))
    ]
    if settings.seeing == 1.0:
        return told
    if settings.harm:
        found = list(read_records(data / "safety" / "alignment.json", image_folder=str(data)))
    else:
        found = ordinary_records(400, dangerous_words=0.5)
    wanted = round(len(found) * settings.seeing / (1 - settings.seeing))
    found += [told[place % len(told)] for place in range(wanted)]
    return [_pair(record) for record in found] if settings.objective == "preference" else found


def _pair(record: Record) -> Record:
    """The record with the worse answer: to comply with what is harmful, to refuse what is not."""
    harmful = record.id.startswith("align")
    return replace(record, rejected=complied(record.id) if harmful else refusal(record.id, bool(record.images)))


def measured_sets(data: Path, forms: Sequence[Form], size: int = 60) -> list[EvaluationSet]:
    """The sets that a stage is measured on: requests of the tests, harmful and harmless, spread over them.

    Without XSTest there are no harmless ones, which a warning says.

    Args:
        data: a folder of ``hpa-lightning benchmark build smol``.
        forms: of the requests.
        size: requests of each set.
    """
    found = []
    for form in forms:
        for kind, measure in (("harmful", "safety"), ("harmless", "over_refusal")):
            name = f"{kind}-{form}"
            if kind == "harmful" or (data / "safety" / f"{name}.jsonl").is_file():
                found.append(EvaluationSet(name, measure, spread(_prompts(data, name), size), max_new_tokens=24))
    if forms and not any(one.kind == "over_refusal" for one in found):
        warnings.warn(f"{data}: over-refusal is not measured. {without_xstest(data)}", stacklevel=2)
    return found


def _prompts(data: Path, name: str) -> list[Record]:
    return list(PromptFile(str(data / "safety" / f"{name}.jsonl"), image_column="image", image_folder=str(data)).read())


def spread(records: Sequence[Record], size: int) -> list[Record]:
    """Return at most so many of the records, at even distances."""
    return [records[place * len(records) // size] for place in range(size)] if len(records) > size else list(records)


def run_stage(
    stage: str,
    data: Path,
    find: Find,
    folder: Path,
    tower: Tower = "efficientnet",
    sets: int = 60,
    language: Language = "smollm2",
) -> dict[str, float]:
    """Train a stage, write its weights to ``folder`` and return what was measured at its end.

    What is there already is kept; an interrupted fit goes on from its newest checkpoint.

    Args:
        stage: one of :data:`~hpa_lightning.smol.stage_weights.BEFORE`.
        data: a folder of ``hpa-lightning benchmark build smol``.
        find: where the packages of the model's parts are.
        folder: for weights, logs and checkpoints; those of the stages before are looked for here and then in the
            package.
        tower: which vision tower.
        sets: requests of each set that is measured.
        language: which language model.

    Raises:
        ValueError: an unknown stage, or a stage before whose weights are not there.
    """
    if stage not in BEFORE:
        raise ValueError(f"there is no stage {stage!r}; expected one of {names(BEFORE)}.")
    target = folder / stage_file(stage, tower, language).name
    if target.is_file():
        return measured_at(target)
    settings, before = SETTINGS[stage], BEFORE[stage]
    made = stage_files_in(folder, before, tower, language)
    model, processor = model_of_stages(find, tower, before, made, language)
    seed = list(BEFORE).index(stage)
    L.seed_everything(seed, workers=True, verbose=False)
    kind = PreferenceModule if settings.objective == "preference" else MLLMModule
    module = kind.from_objects(
        model,
        processor,
        optimizer=partial(torch.optim.AdamW, lr=settings.learning_rate, weight_decay=0.0),
        lr_scheduler=TaskSchedule("linear", warmup_ratio=0.05),
        **_trained(settings),
    )
    source = CVITDataModule(
        [Task(stage, stage_records(data, find, stage), steps=settings.steps, objective=settings.objective)],
        measured_sets(data, settings.measured, sets),
        train_batch_size=BATCH,
        eval_batch_size=30,
        seed=seed,
    )
    work = folder / "fits" / target.stem
    began = time.monotonic()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=1.0,
        logger=CSVLogger(work, name="", version=""),
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(work, save_last=True, save_top_k=0, every_n_train_steps=25)],
    )
    emulate_where_slow(trainer)
    newest, _ = newest_checkpoint([work]) if work.is_dir() else (None, [])
    trainer.fit(module, datamodule=source, ckpt_path=newest)
    seconds = time.monotonic() - began
    found = measure(module, source, work)
    save_stage(module.model, target, settings.rank == 0, {**found, "seconds": round(seconds)})
    write_text(folder / f"{target.stem}.json", json.dumps(found, indent=1) + "\n")
    return found


def _trained(settings: Stage) -> dict[str, Any]:
    if not settings.rank:
        return {"trainable": TrainableParts(projector=True)}
    found: dict[str, Any] = {"lora": LoraSettings(rank=settings.rank, alpha=2.0 * settings.rank)}
    if settings.objective == "preference":
        found["preference"] = PreferenceSettings(sft_weight=settings.sft_weight)
    return found


def measure(module: MLLMModule, source: CVITDataModule, folder: Path) -> dict[str, float]:
    """Return the scores of the sets, and the perplexity on plain sentences; the answers go to ``folder``."""
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    emulate_where_slow(trainer)
    if source.safety_sets:
        trainer.test(module, datamodule=source, verbose=False)
    _write_answers(folder / "answers.json", module.scored)
    found = {scored.fields["set"]: round(scored.score, 4) for scored in module.scored}
    return {**found, "perplexity": round(perplexity(module.model, module.processor.tokenizer, SENTENCES), 2)}


def _write_answers(path: Path, scored: Sequence[Any]) -> None:
    rows: Mapping[str, Any] = {one.fields["set"]: one.rows for one in scored}
    write_text(path, json.dumps(rows, indent=1, default=str) + "\n")
