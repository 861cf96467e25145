"""A fit goes on with the data and the settings that it was started with, or says what differs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from support.resumed_streams import SETTINGS, data, fit, method, new_answer, plain, rewrite, write_stream
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import (
    AllowChanges,
    RetentionSettings,
    SequentialTuning,
    TaskEvaluation,
)
from hpa_lightning.data import CVITDataModule, Record
from hpa_lightning.data.digests import file_digest, records_digest
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.data.resuming import described, differences
from hpa_lightning.metrics.judges import GuardModelJudge
from hpa_lightning.results.result_file import read_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "name"),
    [
        ("first.json", lambda rows: rows[::-1], "data.tasks.first.train"),
        ("second.json", new_answer, "data.tasks.second.train"),
        ("first.json", lambda rows: rows[:3], "data.tasks.first.train"),
        ("second_test.json", new_answer, "data.sets.second.data"),
        ("harmful.json", lambda rows: rows[1:], "data.sets.harmful.data"),
        ("calibration.json", new_answer, "data.harmful_calibration"),
    ],
)
def test_a_changed_file_is_noticed(folder: Path, file: str, change: Any, name: str) -> None:
    state = data(folder).state_dict()
    data(folder).load_state_dict(state)
    rewrite(folder / file, change)
    with pytest.raises(
        ValueError, match=rf"another stream \(.*{name}: \d records, \w+, pictures \w+ in the checkpoint, \d records, "
    ):
        data(folder).load_state_dict(state)


def test_changed_settings_of_the_data_are_noticed_and_those_that_do_not_matter_are_not(folder: Path) -> None:
    state = data(folder).state_dict()
    for options, name in (
        ({"safety_sets": None}, r"data\.sets\.harmful: .* in the checkpoint, nothing now"),
        ({"harmful_calibration": None}, r"data\.harmful_calibration: .* in the checkpoint, nothing now"),
        ({"chat_template": "plain"}, r"data\.chat_template: "),
        ({"max_length": 90}, r"data\.max_length: None in the checkpoint, 90 now"),
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
    ):
        with pytest.raises(ValueError, match=name):
            data(folder, **options).load_state_dict(state)
    data(folder, num_workers=2, eval_batch_size=1, validate_during_fit=True).load_state_dict(state)
    rewrite(folder / "first.json", lambda rows: [{**row, "id": f"new {row['id']}"} for row in rows])
    data(folder).load_state_dict(state)
    moved = folder.with_name("moved")
    shutil.move(folder, moved)
    data(moved).load_state_dict(state)


def test_pictures_count_by_path_size_and_content(tmp_path: Path) -> None:
    def digest(*images: Any) -> str:
        return records_digest([Record("a", user_turn("?", len(images)) + assistant_turn("b"), images)])

    for name, size in (("one", 10), ("two", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x" * size)
        (tmp_path / name / "b.png").write_bytes(b"x" * 10)
    one, two = tmp_path / "one", tmp_path / "two"
    assert digest(one / "b.png", one / "b.png") == digest(two / "b.png", two / "b.png")
    assert digest(one / "a.png") != digest(two / "a.png") and digest(one / "a.png") != digest(one / "b.png")
    assert digest(one / "a.png", one / "b.png") != digest(one / "b.png", one / "a.png")
    picture = np.zeros((4, 4, 3), np.uint8)
    assert digest(picture) == digest(picture.copy()) != digest(picture + 1)


def test_one_letter_in_the_middle_of_much_text_is_noticed() -> None:
    text = "x" * 10_000
    records = [Record(str(i), user_turn(text) + assistant_turn("b")) for i in range(3_000)]
    digest = records_digest(records)
    records[1_500] = replace(records[1_500], messages=user_turn(text) + assistant_turn("c"))
    assert records_digest(records) != digest


def test_settings_in_words(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("a")
    before = described({"judge": str(rules), "batch": [torch.ones(2)], "retention": RetentionSettings()})
    assert before["judge"] == file_digest(rules) and before["retention"]["p_min"] == 5.0
    assert (
        differences(
            before, described({"judge": str(rules), "batch": [torch.ones(2)], "retention": RetentionSettings()})
        )
        == {}
    )
    rules.write_text("b")
    after = described({"judge": str(rules), "batch": [torch.zeros(2)], "retention": RetentionSettings(p_min=4.0)})
    assert sorted(differences(before, after)) == ["batch", "judge", "retention.p_min"]
    guards = [GuardModelJudge("guard", batch_size=size, safe=word) for size, word in ((1, "safe"), (2, "ok"))]
    assert differences(*map(described, guards)) == {"safe": ("safe", "ok")}


def test_changed_callbacks_and_optimizers_are_noticed(folder: Path) -> None:
    processor = tiny_llava()[1]
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(folder / "run", [SequentialTuning(), method(processor), TaskEvaluation(report=False), saver], plain(folder))
    checkpoint = folder / "checkpoints" / "epoch=0.ckpt"

    def resume(callbacks: list[L.Callback], where: str = "other", **options: Any) -> None:
        extra = [TaskEvaluation(report=False, method="other"), ModelCheckpoint(folder / where)]
        fit(folder / where, [*callbacks, *extra], plain(folder), checkpoint, **options)

    own = SequentialTuning()
    for callbacks, match in (
        (
            [own, method(processor, retention=RetentionSettings(40.0, 40.0))],
            r"retention\.p_min: 10\.0 in .*, 40\.0 now",
        ),
        (
            [own, method(processor, orthogonal=False)],
            r"HarmoniousFusion\.orthogonal: True in the checkpoint, False now",
        ),
        ([own], r"callbacks\.HarmoniousFusion: .* in the checkpoint, nothing now"),
        ([SequentialTuning(seed=1), method(processor)], r"SequentialTuning\.seed: 0 in the checkpoint, 1 now"),
        ([own, AllowChanges(["trainer"]), method(processor, orthogonal=False)], r"orthogonal"),
    ):
        with pytest.raises(ValueError, match=match):
            resume(callbacks)
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches: 1 in the checkpoint, 2 now"):
        resume([own, method(processor)], accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"optimizers\.0\.lr: 0\.001 in the checkpoint, 0\.1 now"):
        resume([own, method(processor)], rate=0.1)
    calibration = replace(SETTINGS["calibration"], batch_size=1)  # how it is computed, not what
    resume([own, method(processor, calibration=calibration)], "same")
    with pytest.warns(UserWarning, match=r"AllowChanges: the fit goes on with another fit \(.*orthogonal: True in"):
        resume([own, AllowChanges(), method(processor, orthogonal=False)], "changed")
    events = [event for event in read_results(folder / "changed") if event["event"] == "resume"]
    assert events[-1]["changes"] == ["callbacks.HarmoniousFusion.orthogonal"]


def test_another_datamodule_is_noticed(folder: Path) -> None:
    class Other(CVITDataModule):
        """Lightning looks for the state under the class's name, and would find none."""

    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(folder / "run", [SequentialTuning(), saver], plain(folder))
    other = Other(plain(folder).tasks, processor=tiny_llava()[1], allow_overlap=True)
    with pytest.raises(ValueError, match=r"datamodule: CVITDataModule in the checkpoint, .*Other now"):
        fit(folder / "other", [SequentialTuning()], other, folder / "checkpoints" / "epoch=0.ckpt")


def test_other_pictures_of_the_same_size_are_another_dataset(tmp_path: Path) -> None:
    """Bitmaps of one shape are files of one size."""
    paths = [tmp_path / "images" / f"{index}.bmp" for index in range(3)]
    paths[0].parent.mkdir()

    def digest(colour: int) -> str:
        for path in paths:
            Image.new("RGB", (64, 64), (colour, 0, 0)).save(path)
        return records_digest([Record("a", user_turn("?", 3), tuple(map(str, paths)))])

    first, times = digest(1), [path.stat().st_size for path in paths]
    assert digest(2) != first and [path.stat().st_size for path in paths] == times
    assert digest(1) == first  # the time of writing does not count
