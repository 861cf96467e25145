"""Calibration data and settings as users pass them: each works, or one sentence names it before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.calibrated_fits import fit_with
from support.foreign_module import token_loader
from support.method_fits import dense
from support.multimodal_fits import MODELS, module, stream
from support.multimodal_fits import trainer as stream_trainer
from support.resumed_fits import build
from support.tiny_mllms import evaluation_records, training_records

from hpa_lightning.callbacks import (
    AllowChanges,
    CalibrationSettings,
    HarmoniousFusion,
    RetentionSettings,
    SequentialTuning,
    TaskEvaluation,
)
from hpa_lightning.data import CVITDataModule
from hpa_lightning.data.record import Record, assistant_turn
from hpa_lightning.modules import MLLMModule
from hpa_lightning.results.result_file import read_results

SMALL = {"safety_samples": 4, "task_samples": 4, "batch_size": 4}

REFUSAL = "I cannot help with that."


def test_settings_may_be_dicts(tmp_path: Path) -> None:
    weights = []
    for kind in (dict, None):
        calibration = SMALL if kind else CalibrationSettings(**SMALL)  # type: ignore[arg-type]
        retention = {"p_min": 20.0, "p_max": 40.0} if kind else RetentionSettings(p_min=20.0, p_max=40.0)
        fusion = HarmoniousFusion(
            safety_data=token_loader(7, 4),
            calibration=calibration,  # type: ignore[arg-type]
            retention=retention,  # type: ignore[arg-type]
        )
        torch.manual_seed(0)
        weights.append(dense(fit_with(tmp_path, fusion)))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    with pytest.raises(
        ValueError, match=r"retention has \['p_mn'\], which RetentionSettings does not; expected \['p_min"
    ):
        HarmoniousFusion(retention={"p_mn": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibration is 8; expected CalibrationSettings, or a dict of"):
        HarmoniousFusion(calibration=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="p_min, p_max are 50"):
        HarmoniousFusion(retention={"p_min": 50.0, "p_max": 40.0})  # type: ignore[arg-type]


def test_records_need_something_that_makes_batches_of_them(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="safety_data are records, and neither the datamodule has"):
        fit_with(tmp_path, HarmoniousFusion(safety_data=training_records(4), calibration=CalibrationSettings(**SMALL)))


def test_an_iterator_serves_every_fit(tmp_path: Path) -> None:
    results = []
    for data in (list(token_loader(7, 8)), iter(list(token_loader(7, 8)))):
        tuned = build(False)
        settings = CalibrationSettings(safety_samples=8, task_samples=4)
        fusion = HarmoniousFusion(safety_data=data, calibration=settings)
        for _ in range(2):
            fit_with(tmp_path, fusion, tuned=tuned)
        results.append(dense(tuned))
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())


@pytest.mark.parametrize(
    ("given", "told"), [(20, "holds more than the 8 samples that are"), (2, "holds 2 samples, and")]
)
def test_samples_that_are_not_used_or_not_there_are_told_once(
    given: int, told: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    settings = CalibrationSettings(safety_samples=8, task_samples=4)
    fit_with(tmp_path, HarmoniousFusion(safety_data=token_loader(7, given), calibration=settings))
    assert [told in str(warning.message) for warning in recwarn].count(True) == 1


def harmful(answers: list[str]) -> list[Record]:
    return [
        Record(f"h{index}", (*record.messages[:1], *assistant_turn(answer)), record.images, source=f"h.json[{index}]")
        for index, (record, answer) in enumerate(zip(training_records(len(answers), seed=77), answers, strict=True))
    ]


def with_harmful(**settings: Any) -> CVITDataModule:
    plain = stream(evaluated=True)
    return CVITDataModule(
        plain.tasks,
        plain.safety_sets,
        processor=MODELS["llava"]()[1],
        train_batch_size=4,
        eval_batch_size=4,
        allow_overlap=True,
        **settings,
    )


def test_refusals_that_are_given_are_taken_without_asking_the_model(tmp_path: Path) -> None:
    tuned = module()
    asked: list[int] = []
    tuned.generate = lambda batch, **k: asked.append(1) or [REFUSAL] * len(batch["ids"])  # type: ignore
    fusion = HarmoniousFusion(calibration=CalibrationSettings(**SMALL))
    data = with_harmful(harmful_calibration=harmful([REFUSAL] * 3 + ["Sure."]), harmful_calibration_answers="given")
    with pytest.warns(
        UserWarning, match=r"1 of 4 given refusals are none by the judge, the first in h.json\[3\]: 'Sure"
    ):
        stream_trainer(tmp_path, [SequentialTuning(), fusion]).fit(tuned, data)
    assert not asked
    (event,) = [e for e in read_results(tmp_path / "results.jsonl") if e["event"] == "safety_calibration"]
    assert (event["answers"], event["refused"], event["used"]) == ("given", 3, 4)


def test_a_set_that_a_checkpoint_holds_is_not_asked_for_again(tmp_path: Path) -> None:
    def fit(folder: str, records: int, checkpoint: Path | None = None) -> MLLMModule:
        tuned = module()
        tuned.generate = lambda batch, **k: [REFUSAL] * len(batch["ids"])  # type: ignore[method-assign]
        every: list[L.Callback] = [SequentialTuning(), HarmoniousFusion(calibration=CalibrationSettings(**SMALL))]
        every.append(AllowChanges() if checkpoint else ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1))
        data = with_harmful(harmful_calibration=harmful([REFUSAL] * records))
        fitted = stream_trainer(tmp_path / folder, every, enable_checkpointing=checkpoint is None)
        fitted.fit(tuned, data, ckpt_path=checkpoint, weights_only=False)
        return tuned

    first = fit("first", 4).state_dict()
    resumed = fit("second", 3, tmp_path / "first" / "epoch=0.ckpt").state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in first.items())
    with pytest.raises(MisconfigurationException, match="harmful_calibration holds 3 records"):
        fit("third", 3)


def test_a_file_of_refusals_is_safety_data(tmp_path: Path) -> None:
    """The same weights from a file on the callback, from records, and from the datamodule."""
    records = harmful([REFUSAL] * 4)
    file = tmp_path / "refusals.jsonl"
    rows = [{"id": record.id, "messages": list(record.messages)} for record in evaluation_texts(records)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = []
    for number, (safety_data, settings) in enumerate(
        (
            (str(file), {}),
            (evaluation_texts(records), {}),
            (None, {"harmful_calibration": str(file), "harmful_calibration_answers": "given"}),
        )
    ):
        tuned = module()
        fusion = HarmoniousFusion(safety_data=safety_data, calibration=CalibrationSettings(**SMALL))
        stream_trainer(tmp_path / str(number), [SequentialTuning(), fusion]).fit(tuned, with_harmful(**settings))
        results.append(tuned.state_dict())
    for other in results[1:]:
        assert all(torch.equal(weight, other[name]) for name, weight in results[0].items())


def evaluation_texts(records: list[Record]) -> list[Record]:
    """The records without images: a file of texts."""
    return [
        Record(
            record.id,
            tuple(
                {**turn, "content": [part for part in turn["content"] if part["type"] == "text"]}
                for turn in record.messages
            ),
            source=record.source,
        )
        for record in records
    ]


def test_the_calibration_set_is_made_before_the_aligned_model_is_evaluated(tmp_path: Path) -> None:
    tuned = module()
    tuned.generate = lambda batch, **k: ["Sure, here is how."] * len(batch["ids"])  # type: ignore[method-assign]
    every = [SequentialTuning(), HarmoniousFusion(calibration=CalibrationSettings(**SMALL)), TaskEvaluation()]
    with pytest.raises(ValueError, match="the aligned model refused 0 of 4 harmful inputs"):
        stream_trainer(tmp_path, every).fit(tuned, with_harmful(harmful_calibration=harmful([REFUSAL] * 4)))
    assert not [event for event in read_results(tmp_path / "results.jsonl") if event["event"] == "score"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "safety calibration needs harmful inputs; pass harmful_calibration="),
        (
            {"harmful_calibration": evaluation_records(3, seed=5)},
            MisconfigurationException,
            "harmful_calibration holds 3 records, and calibration.safety_samples is 4",
        ),
        (
            {"harmful_calibration": harmful([REFUSAL] * 3 + [" "]), "harmful_calibration_answers": "given"},
            ValueError,
            r"h.json\[3\]",
        ),
    ],
    ids=["none", "too_few", "no_answer"],
)
def test_missing_harmful_inputs_are_told_before_anything_is_evaluated(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    every = [SequentialTuning(), HarmoniousFusion(calibration=CalibrationSettings(**SMALL)), TaskEvaluation()]
    with pytest.raises(error, match=message):
        stream_trainer(tmp_path, every).fit(module(), with_harmful(**settings))
    path = tmp_path / "results.jsonl"
    assert not path.exists() or not [event for event in read_results(path) if event["event"] == "score"]
