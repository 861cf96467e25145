"""Changed callbacks, optimizers and datamodules are noticed on a resume, and allowed by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.resumed_streams import SETTINGS, fit, method, plain, write_stream
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import AllowChanges, RetentionSettings, SequentialTuning, TaskEvaluation
from hpa_lightning.data import CVITDataModule
from hpa_lightning.modules import LoraSettings
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
    with pytest.raises(ValueError, match=r"trainer\.limit_train_batches: 1\.0 in the checkpoint, 1 now"):
        resume([own, method(processor)], limit_train_batches=1)
    for model, match in (
        ({"lora": LoraSettings(rank=4)}, r"another module \(model\.lora\.rank: 2 in the checkpoint, 4 now\)"),
        ({"lora": LoraSettings(rank=2, alpha=1.0)}, r"model\.lora\.alpha: 16\.0 in the checkpoint, 1\.0 now"),
        ({"generation": {"num_beams": 2}}, r"model\.generation\.num_beams: nothing in the checkpoint, 2 now"),
        (
            {"lora": LoraSettings(rank=2, target_modules=["q_proj"])},
            r"model\.trained: \d+ tensors, \w+ in the checkpoint",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            resume([own, method(processor)], model=model)
    calibration = replace(SETTINGS["calibration"], batch_size=1)  # how it is computed, not what
    resume([own, method(processor, calibration=calibration)], "same")
    with pytest.warns(UserWarning, match=r"AllowChanges: the fit continues with another fit \(.*orthogonal: True in"):
        resume([own, AllowChanges(), method(processor, orthogonal=False)], "changed")
    events = [event for event in read_results(folder / "changed") if event["event"] == "resume"]
    assert events[-1]["changes"] == ["callbacks.HarmoniousFusion.orthogonal"]


def test_checkpoints_of_earlier_versions_are_not_asked_for_what_they_do_not_hold(folder: Path) -> None:
    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(folder / "run", [SequentialTuning(), saver], plain(folder))
    checkpoint = torch.load(folder / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    del checkpoint["hpa_lightning_module"], checkpoint["CVITDataModule"]["data"]["processor"]
    del checkpoint["hpa_lightning_fit"]["settings"]["trainer"]["limit_train_batches"]
    torch.save(checkpoint, folder / "old.ckpt")
    trainer = fit(folder / "old", [SequentialTuning()], plain(folder), folder / "old.ckpt")
    assert trainer.global_step == 4


def test_another_datamodule_is_noticed(folder: Path) -> None:
    class Other(CVITDataModule):
        """Lightning looks for the state under the class's name, and would find none."""

    saver = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    fit(folder / "run", [SequentialTuning(), saver], plain(folder))
    other = Other(plain(folder).tasks, processor=tiny_llava()[1], allow_overlap=True)
    with pytest.raises(ValueError, match=r"datamodule: CVITDataModule in the checkpoint, .*Other now"):
        fit(folder / "other", [SequentialTuning()], other, folder / "checkpoints" / "epoch=0.ckpt")
