"""The stream inside a real fit: which batches are trained on, and resuming anywhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.tiny_mllms import evaluation_records, tiny_llava, training_records

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data import CVITDataModule, Task
from hpa_lightning.data.batch_order import TaskBatchSampler
from hpa_lightning.modules import LoraSettings, MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIZES = {"a": (6, {"epochs": 1}), "b": (5, {"epochs": 2}), "c": (7, {"steps": 3})}  # 3, 3 + 3 and 3 steps


class Trace(L.Callback):
    """What happens in which order."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.append(("start", trainer.current_epoch))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.events.append((trainer.current_epoch, float(outputs["loss"].detach())))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.append(("end", trainer.current_epoch))


def fit(
    accumulate: int = 1, resume: Path | None = None, folder: Path | None = None, num_workers: int = 0
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    tasks = [
        Task(name, training_records(size, seed=i, name=name), evaluation_records(1, seed=50 + i), **length)
        for i, (name, (size, length)) in enumerate(SIZES.items(), start=1)
    ]
    torch.manual_seed(0)
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2))
    trace = Trace()
    callbacks: list[L.Callback] = [SequentialTuning(), trace]
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"))
    with tempfile.TemporaryDirectory() as root:
        trainer = L.Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            reload_dataloaders_every_n_epochs=1,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
        )
        data = CVITDataModule(tasks, train_batch_size=2, num_workers=num_workers)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}, trace.events


@pytest.fixture(scope="module", params=[1, 2], ids=["every-batch", "accumulated"])
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("checkpoints")
    weights, events = fit(request.param, folder=folder)
    return request.param, folder, weights, events


def test_every_task_is_trained_for_its_length(whole: Any) -> None:
    accumulate, folder, _, events = whole
    batches = [sum(event[0] == epoch for event in events) for epoch in range(4)]
    assert batches == [3, 3, 3, 3 * accumulate]
    assert [event for event in events if event[0] in ("start", "end")] == [
        (what, epoch) for epoch in range(4) for what in ("start", "end")
    ]
    steps = 12 if accumulate == 1 else 2 + 2 + 2 + 3
    assert len(list(folder.glob("step=*.ckpt"))) == steps


@pytest.mark.parametrize(
    ("where", "step", "accumulated_step"),
    [("in the middle of task 2", 5, 3), ("after the last batch of task 1", 3, 2), ("after that of task 2", 9, 6)],
)
def test_a_resumed_run_is_bit_identical(whole: Any, where: str, step: int, accumulated_step: int) -> None:
    accumulate, folder, weights, events = whole
    number = step if accumulate == 1 else accumulated_step
    resumed, after = fit(accumulate, resume=folder / f"step={number}.ckpt")
    assert after == events[-len(after) :]
    assert 0 < len(after) < len(events)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_batches_are_those_of_the_sampler_and_workers_change_nothing(whole: Any) -> None:
    accumulate, _, weights, events = whole
    with_workers, same = fit(accumulate, num_workers=accumulate % 2)
    assert same == events and all(torch.equal(weights[name], with_workers[name]) for name in weights)
    # The first loss, computed by hand from the sampler's first batch.
    records = training_records(6, seed=1, name="a")
    first = [records[index] for index in next(iter(TaskBatchSampler(6, 2, 0, "a")))]
    model, processor = tiny_llava()
    data = CVITDataModule([Task("a", records, evaluation_records(1))], processor=processor)
    batch = data.collator.train(first)
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits.detach().double()
    total = count = 0.0
    for row in range(2):
        for position in range(1, logits.shape[1]):
            label = int(batch["labels"][row, position])
            if label != -100:
                total -= float(torch.log_softmax(logits[row, position - 1], dim=-1)[label])
                count += 1
    assert events[1][1] * accumulate == pytest.approx(total / count, rel=1e-5)  # Lightning divides it
