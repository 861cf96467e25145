"""Learning rates over real fits: every task has its own schedule, whatever its length, and a resume goes on with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau
from support.foreign_module import quiet_trainer
from support.tiny_mllms import evaluation_records, tiny_llava, training_records
from torch.utils.data import IterableDataset
from transformers import get_cosine_schedule_with_warmup

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data import CVITDataModule, MLLMCollator, Record, Task
from hpa_lightning.modules import LoraSettings, MLLMModule, TaskSchedule, task_length

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PEAK = 0.5
SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "a": (6, {"epochs": 2}),
    "b": (3, {"epochs": 1}),
    "c": (5, {"steps": 7}),
}


class Rates(L.Callback):
    """The rate of every optimizer step, by epoch."""

    def __init__(self) -> None:
        self.rates: list[tuple[int, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append((trainer.current_epoch, optimizer.param_groups[0]["lr"]))


def fit(
    folder: Path,
    schedule: Any,
    callbacks: tuple[L.Callback, ...] = (SequentialTuning(),),
    resume: Path | None = None,
    interval: str = "step",
    **options: Any,
) -> list[tuple[int, float]]:
    tasks = [
        Task(name, training_records(size, seed=i, name=name), evaluation_records(1, seed=50 + i), **length)
        for i, (name, (size, length)) in enumerate(SIZES.items(), start=1)
    ]
    torch.manual_seed(0)
    module = MLLMModule.from_objects(
        *tiny_llava(),
        lora=LoraSettings(rank=2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=PEAK),
        lr_scheduler=schedule,
        lr_scheduler_interval=interval,
    )
    rates = Rates()
    trainer = quiet_trainer(folder, [*callbacks, rates], reload_dataloaders_every_n_epochs=1, **options)
    trainer.fit(module, datamodule=CVITDataModule(tasks, train_batch_size=1), ckpt_path=resume)
    return rates.rates


def cosine(step: int, steps: int, warm_up: int) -> float:
    """LLaVA's schedule by its formula."""
    if step < warm_up:
        return PEAK * step / warm_up
    return PEAK * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def expected(lengths: list[int], ratio: float) -> list[float]:
    return [cosine(step, n, math.ceil(ratio * n)) for n in lengths for step in range(n)]


@pytest.mark.parametrize(("accumulate", "lengths"), [(1, [12, 3, 7]), (4, [4, 1, 7])])
def test_every_task_has_its_own_cosine(tmp_path: Path, accumulate: int, lengths: list[int]) -> None:
    ratio = 0.25 if accumulate == 1 else 0.0
    rates = fit(tmp_path, TaskSchedule("cosine", ratio), accumulate_grad_batches=accumulate)
    assert [rate for _, rate in rates] == pytest.approx(expected(lengths, ratio))


def test_a_function_of_transformers_gets_the_tasks_steps(tmp_path: Path) -> None:
    rates = fit(tmp_path, partial(get_cosine_schedule_with_warmup, num_warmup_steps=1))
    assert [rate for _, rate in rates] == pytest.approx([cosine(s, n, 1) for n in (12, 3, 7) for s in range(n)])


def test_limits_and_an_accumulation_that_changes_count(tmp_path: Path) -> None:
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2, 3: 3})
    # Four of the six batches in epoch 0, two windows of two in epoch 1; two steps in 3; steps of three batches in 7.
    rates = fit(tmp_path, TaskSchedule("linear"), (SequentialTuning(), accumulation), limit_train_batches=4)
    lengths = [4 + 2, 2, 2]  # the third task's 7 steps of 3 batches are cut to 4 batches
    assert [rate for _, rate in rates] == pytest.approx([PEAK * (1 - s / n) for n in lengths for s in range(n)])


def test_a_resume_in_mid_task_keeps_the_schedule(tmp_path: Path) -> None:
    for schedule in (
        TaskSchedule("cosine", 0.25),
        lambda o, num_training_steps: torch.optim.lr_scheduler.OneCycleLR(o, PEAK, num_training_steps),
    ):
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit(tmp_path, schedule, (SequentialTuning(), saving), enable_checkpointing=True)
        for step in (5, 13, 17):  # in the first, the second and the third task
            resumed = fit(tmp_path, schedule, resume=tmp_path / f"step={step}.ckpt")
            assert resumed == whole[step:]
        for path in tmp_path.glob("*.ckpt"):
            path.unlink()


def test_a_stream_that_nobody_splits_is_one_piece(tmp_path: Path) -> None:
    rates = fit(tmp_path, TaskSchedule("linear"), ())
    assert [rate for _, rate in rates] == pytest.approx([PEAK * (1 - step / 22) for step in range(22)])


def test_epochs_are_counted_where_the_interval_is_an_epoch(tmp_path: Path) -> None:
    rates = fit(tmp_path, TaskSchedule("linear"), interval="epoch")
    assert dict(rates) == pytest.approx({0: PEAK, 1: PEAK / 2, 2: PEAK, 3: PEAK})


def test_a_schedule_of_another_length_is_told_once_for_each_task(tmp_path: Path) -> None:
    fixed: Callable[..., Any] = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)  # noqa: E731
    with pytest.warns(UserWarning) as caught:
        fit(tmp_path, fixed)
    told = [str(item.message) for item in caught if "CosineAnnealingLR" in str(item.message)]
    assert len(told) == 2  # the first task has 12 steps
    assert "made for 12 steps, and task 1 ('b') has 3" in told[0] and "task 2 ('c') has 7" in told[1]


def warnings_of(folder: Path, schedule: Any) -> list[str]:
    with pytest.warns(UserWarning) as caught:
        fit(folder, schedule)
    return [str(item.message) for item in caught if str(item.message).startswith("lr_scheduler:")]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=7),
        lambda o: torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.CosineAnnealingLR(o, 7)]),
        lambda o: get_cosine_schedule_with_warmup(o, 1, 7),
    ],
    ids=["linear", "chained", "transformers"],
)
def test_other_schedules_that_count_are_told_too(schedule: Callable[..., Any], tmp_path: Path) -> None:
    told = warnings_of(tmp_path, schedule)
    assert ["is made for 7 steps, and task" in text for text in told] == [True, True]  # the third task has 7


def test_steps_at_a_rate_of_zero_are_told_and_below_zero_refused(tmp_path: Path) -> None:
    def schedule(lowest: float) -> Callable[..., Any]:
        return lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: max(lowest, 1 - step / 7))

    assert [text.split(", which")[0] for text in warnings_of(tmp_path, schedule(0.0))] == [
        "lr_scheduler: the rate of LambdaLR is 0 in 5 of the 12 steps of task 0 ('a')"
    ]
    with pytest.raises(ValueError, match=r"rate of LambdaLR is -0.0714 at step 8 of the 12 of task 0 \('a'\)"):
        fit(tmp_path, schedule(-1.0))
    with pytest.raises(ValueError, match=r"OneCycleLR does not last the 12 steps of task 0 \('a'\): Tried to step"):
        fit(tmp_path, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, PEAK, 4))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        lambda o: torch.optim.lr_scheduler.ConstantLR(o),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=2),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.5, step_size_up=2, cycle_momentum=False),
    ],
)
def test_schedules_that_have_no_end_are_left_alone(schedule: Callable[..., Any], tmp_path: Path) -> None:
    assert warnings_of(tmp_path, schedule) == []


def test_without_a_stream_the_fit_is_the_task(tmp_path: Path) -> None:
    module = MLLMModule.from_objects(
        *tiny_llava(),
        lora=LoraSettings(rank=2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=PEAK),
        lr_scheduler=TaskSchedule("linear"),
    )
    rates = Rates()
    data = CVITDataModule([Task("a", training_records(4), evaluation_records(1))], processor=module.processor)
    loader = torch.utils.data.DataLoader(training_records(4), batch_size=2, collate_fn=data.collator.train)
    trainer = quiet_trainer(tmp_path, [rates], max_epochs=3)
    trainer.fit(module, loader)
    assert [rate for _, rate in rates.rates] == pytest.approx([PEAK * (1 - step / 6) for step in range(6)])
    assert task_length(trainer) == ("the fit", 6)


class Endless(IterableDataset):
    """Data that do not tell their length."""

    def __iter__(self) -> Iterator[Record]:
        return iter(training_records(2))


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_schedule_that_asks_for_no_length_needs_none(schedule: str, tmp_path: Path) -> None:
    made: dict[str, Callable[..., Any]] = {
        "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2),
        # By that threshold no loss after the first one is better, whatever the model learns.
        "plateau": lambda optimizer: ReduceLROnPlateau(
            optimizer, monitor="train/loss", patience=0, mode="max", threshold=1e6
        ),
    }
    module = MLLMModule.from_objects(
        *tiny_llava(),
        lora=LoraSettings(rank=2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=PEAK),
        lr_scheduler=made[schedule],
    )
    rates = Rates()
    collate = MLLMCollator(module.processor).train
    trainer = quiet_trainer(tmp_path, [rates, GradientAccumulationScheduler({0: 1})], max_epochs=2)
    trainer.fit(module, torch.utils.data.DataLoader(Endless(), batch_size=1, collate_fn=collate))
    followed = [rate for _, rate in rates.rates]
    if schedule == "cosine":
        assert followed == pytest.approx([PEAK, PEAK / 2, 0.0, PEAK / 2])
    else:
        assert trainer.lr_scheduler_configs[0].monitor == "train/loss"
        assert followed[0] == PEAK and followed[-1] < PEAK


def test_impossible_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name is 'cosin'"):
        TaskSchedule("cosin")
    with pytest.raises(ValueError, match=r"lr_scheduler has \['warmup'\]; expected a dict of \['name', "):
        MLLMModule.from_objects(*tiny_llava(), lr_scheduler={"name": "cosine", "warmup": 0.03})
    with pytest.raises(ValueError, match="expected a share"):
        TaskSchedule(warmup_ratio=3.0)
    with pytest.raises(ValueError, match="expected one"):
        TaskSchedule(warmup_ratio=0.1, warmup_steps=3)
    with pytest.raises(ValueError, match="warms up for 3 steps, but the task has 3"):
        fit(tmp_path, TaskSchedule("linear", warmup_steps=3))
    with pytest.raises(ValueError, match="attach a trainer"):
        MLLMModule.from_objects(*tiny_llava(), lr_scheduler=TaskSchedule()).configure_optimizers()


def test_a_task_of_one_step_is_trained() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    assert TaskSchedule("cosine", 0.03)(optimizer, 1).get_last_lr() == [PEAK]


def test_one_line_of_yaml(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "model": {
                    "model": str(tmp_path / "model"),
                    "lora": {"rank": 2},
                    "lr_scheduler": {"name": "cosine", "warmup_ratio": 0.03},
                },
                "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
            }
        )
    )
    cli = LightningCLI(MLLMModule, args=["--config", str(config)], run=False, save_config_callback=None)
    assert cli.model.make_lr_scheduler == TaskSchedule("cosine", 0.03)
    # What stands in a checkpoint's hyperparameters makes the same module again.
    again = MLLMModule.from_objects(*tiny_llava(), lr_scheduler=cli.model.hparams["lr_scheduler"])
    assert again.make_lr_scheduler == TaskSchedule("cosine", 0.03)
    config.write_text(
        config.read_text().replace(
            '{"name": "cosine", "warmup_ratio": 0.03}',
            '{"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}',
        )
    )
    cli = LightningCLI(MLLMModule, args=["--config", str(config)], run=False, save_config_callback=None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert cli.model.make_lr_scheduler(optimizer).step_size == 3
