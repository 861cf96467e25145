"""Changed callbacks, optimizers and datamodules are noticed on a resume, and allowed by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from support.resumed_streams import SETTINGS, fit, method, plain, write_stream
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import AllowChanges, RetentionSettings, SequentialTuning, TaskEvaluation
from hpa_lightning.data import CVITDataModule
from hpa_lightning.results.result_file import read_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path)


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
    with pytest.warns(UserWarning, match=r"AllowChanges: the fit continues with another fit \(.*orthogonal: True in"):
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
