"""Several sources in one task: what is drawn of each, told and kept."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.safety_files import write_vlguard
from support.tiny_mllms import evaluation_records, tiny_llava, training_records, write_llava_json

from hpa_lightning.data import CVITDataModule, DataPart, MixedData, Task, VLGuard
from hpa_lightning.data.nano import NanoDataModule


def names(mixture: MixedData) -> Counter[str]:
    return Counter(record.id.rstrip("0123456789") for record in mixture.read())


def test_samples_are_drawn_without_replacement_and_shares_are_reached_by_repeating() -> None:
    parts = [
        DataPart(training_records(20, name="a"), samples=12),
        DataPart(training_records(3, 1, "b")),
        DataPart(training_records(4, 2, "c"), share=0.5, name="little"),
    ]
    mixture = MixedData(parts, seed=3)
    assert names(mixture) == {"a": 12, "b": 3, "c": 15}
    drawn = [record.id for record in mixture.read()]
    assert len(set(drawn[:12])) == 12 and drawn == [record.id for record in MixedData(parts, seed=3).read()]
    assert drawn != [record.id for record in MixedData(parts, seed=4).read()]
    assert mixture.drawn == [
        {"source": "20 records in memory", "samples": 12, "records": 20},
        {"source": "3 records in memory", "samples": 3, "records": 3},
        {"source": "little", "samples": 15, "records": 4},
    ]


def test_vlguard_post_hoc_recipe_on_its_own_layout(tmp_path: Path, caplog: Any) -> None:
    """All pairs of VLGuard's training split, and helpful records drawn of LLaVA's file; told and in the results."""
    write_vlguard(tmp_path / "VLGuard", "train", unsafe=3, safe=2)
    write_llava_json(tmp_path / "llava.json", training_records(30), tmp_path / "images")
    mixture = MixedData(
        [
            DataPart(VLGuard(str(tmp_path / "VLGuard"), "train", "all")),
            DataPart(str(tmp_path / "llava.json"), samples=11, image_folder=str(tmp_path / "images")),
        ]
    )
    stream = CVITDataModule(
        [Task("safety", mixture, evaluation_records(2, 9))], processor=tiny_llava()[1], train_batch_size=6
    )
    with caplog.at_level(logging.INFO):
        stream.setup("fit")
    assert "Mixed data, 18 samples: 7 of 7 records of VLGuard(" in caplog.text
    assert "11 of 30 records of" in caplog.text
    (drawn,) = stream.provenance()["mixed"].values()
    assert [one["samples"] for one in drawn] == [7, 11] and json.dumps(drawn)
    assert len(stream.train_dataloader()) == 3


def test_wrong_mixtures_are_told() -> None:
    some = training_records(3)
    for parts, message in (
        ([], "a mixture of 0 parts"),
        ([DataPart(some, share=0.5)], "expected a part without a share"),
        ([DataPart(some), DataPart(some, share=0.6), DataPart(some, share=0.4)], "a sum below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MixedData(parts)
    with pytest.raises(ValueError, match="has 3 records; 4 samples were asked for"):
        MixedData([DataPart(some, samples=4)]).read()
    with pytest.raises(ValueError, match="samples of '3 records in memory' is 0"):
        DataPart(some, samples=0)
    with pytest.raises(ValueError, match="the share of"):
        DataPart(some, share=1.0)


def test_nano_s_step_of_safety_tuning() -> None:
    small: dict[str, Any] = {"train_size": 8, "calibration_size": 2, "test_size": 2, "task_order": ["charts", "digits"]}
    answers = NanoDataModule(0, **small, safety_task="answers", safety_task_size=9, safety_task_helpful=5)
    assert [task.name for task in answers.tasks] == ["charts", "digits", "safety"] and answers.tasks[2].test is None
    assert names(answers.tasks[2].train) == {"safety-tuning-": 9, "charts-train-": 3, "digits-train-": 2}
    pairs = NanoDataModule(0, **small, safety_task="preference", safety_task_size=9, safety_task_helpful=4)
    found = list(pairs.tasks[2].train.read())
    assert pairs.tasks[2].objective == "preference" and len(found) == 13
    for record in found:
        chosen = record.messages[-1]["content"][0]["text"]
        refused = record.id.startswith("safety-tuning")
        assert ("cannot" in chosen) == refused and ("cannot" in record.rejected) != refused
    with pytest.raises(ValueError, match="safety_task is 'dpo'; expected 'answers', 'preference' or None"):
        NanoDataModule(0, **small, safety_task="dpo")  # type: ignore[arg-type]
