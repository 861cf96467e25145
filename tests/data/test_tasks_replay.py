"""Replay of earlier tasks and of a safety set: settings, resuming, the refusals of nano."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.replay_streams import stream, tasks, trained
from support.tiny_mllms import tiny_llava, training_records

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data import CVITDataModule, Record, Replay, SafetyReplay
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.data.nano.harm import TEXT_REQUESTS
from hpa_lightning.data.nano.lexicon import REFUSALS
from hpa_lightning.data.overlap import record_key
from hpa_lightning.modules import LoraSettings, MLLMModule


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="samples_per_task is 0; expected at least 1"):
        Replay(0)
    with pytest.raises(ValueError, match=r"replay.share is 1.0; expected a fraction between 0 and 1"):
        Replay(3, share=1.0)
    with pytest.raises(ValueError, match=r"safety_replay.samples is 0"):
        SafetyReplay([], samples=0)
    with pytest.raises(ValueError, match=r"samples=9, but only 4 records were given"):
        stream(safety_replay=SafetyReplay(training_records(4, 91, "s"), samples=9))
    with pytest.raises(ValueError, match=r"are \[0.6, 0.4\]; expected a sum below 1"):
        stream(replay=Replay(3, share=0.6), safety_replay=SafetyReplay(training_records(4, 91, "s"), share=0.4))


def test_a_checkpoint_of_another_replay_is_refused_and_an_older_one_loads() -> None:
    settings: dict[str, Any] = {"replay": Replay(3), "safety_replay": SafetyReplay(training_records(4, 91, "s"))}
    state = stream(**settings).state_dict()
    stream(**settings).load_state_dict(state)
    for other, changed in (
        ({"replay": Replay(4)}, "replayed"),
        ({"replay": Replay(3, share=0.5)}, "replay_counts"),
        ({"safety_replay": SafetyReplay(training_records(4, 91, "s"), samples=3)}, "safety_replayed"),
        ({"replay": None}, "replayed"),
    ):
        with pytest.raises(ValueError, match=rf"another stream \(.*{changed}[.:]"):
            stream(**{**settings, **other}).load_state_dict(state)
    plain = stream()
    older = {key: plain.state_dict()[key] for key in ("tasks", "seed", "injected")}
    plain.load_state_dict(older)
    with pytest.raises(ValueError, match=r"replayed\.a: nothing in the checkpoint"):
        stream(replay=Replay(3)).load_state_dict(older)


class Trace(L.Callback):
    """Records and batches of every epoch, and every loss."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append((len(trainer.train_dataloader.dataset), len(trainer.train_dataloader)))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit(folder: Path, resume: Path | None = None) -> tuple[dict[str, torch.Tensor], Trace]:
    streamed = tasks()
    streamed[2].steps = 3
    torch.manual_seed(0)
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2))
    trace = Trace()
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[
            SequentialTuning(),
            trace,
            ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"),
        ],
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = CVITDataModule(
        streamed,
        train_batch_size=4,
        replay=Replay(5, share=0.5),
        safety_replay=SafetyReplay(training_records(3, 91, "s"), samples=2),
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}, trace


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_resumed_fit_replays_the_same_samples(tmp_path: Path) -> None:
    weights, whole = fit(tmp_path)
    # 10 + 2 records; 7 + 2 and as many replayed; 20 + 2 and as many replayed, of which three steps take 12.
    assert whole.epochs == [(12, 3), (18, 5), (44, 3)]
    for step in (5, 10):  # in the middle of the second task and of the third
        resumed, after = fit(tmp_path / "resumed", resume=tmp_path / f"step={step}.ckpt")
        assert after.losses == whole.losses[step:]
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_nano_answers_with_the_benchmarks_refusals() -> None:
    small = {"train_size": 20, "calibration_size": 4, "test_size": 6}
    data = NanoDataModule(**small, replay_size=5, safety_replay_size=7, safety_replay_share=0.5)
    data.setup("fit")
    safety: list[Record] = list(data.safety_replay.data)
    assert {r.messages[-1]["content"][0]["text"] for r in safety} <= set(REFUSALS)
    assert len(safety) == 7
    assert sum(record.prompt.startswith(TEXT_REQUESTS) for record in safety) == 2, "three, two and two of each kind"
    prefixes = Counter(name.split("-")[0] for name in trained(data, "captions"))
    assert prefixes == {"captions": 20, "safety": 30, "driving": 5, "digits": 5}
    tested = {record_key(r) for item in data.evaluation_sets() for r in item.data}
    assert not tested & {record_key(r) for r in safety}
    for bad, message in (
        ({"replay_size": -1}, "replay_size is -1"),
        ({"safety_replay_share": 0.1}, "safety_replay_share is 0.1, but safety_replay_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            NanoDataModule(**small, **bad)
