"""What a run took: every time of every callback counts, and what a resumed run does again counts once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from support.resumed_fits import ResumableLoader, Stop, build, trainer

from hpa_lightning.callbacks import TaskCallback
from hpa_lightning.results.result_file import last_of_each, read_results


class Looks(TaskCallback):
    """Takes two times when the task starts, and one after every third batch."""

    def on_task_start(self, trainer: L.Trainer, *_: Any) -> None:
        for _ in range(2):
            with self.timed(trainer, 0, "calibrate"):
                pass

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        if trainer.global_step % 3 == 0:
            with self.timed(trainer, 0, "drift"):
                pass


class LooksToo(Looks):
    """Another callback that takes the same times."""


def times(folder: Path) -> Counter[str]:
    return Counter(event["phase"] for event in read_results(folder / "results.jsonl") if event["event"] == "time")


def test_every_time_of_every_callback_counts_once(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", [Looks(), LooksToo()]).fit(build(True), ResumableLoader())
    whole = times(tmp_path / "whole")
    assert whole["calibrate"] == 4 and whole["drift"] >= 6 and whole["train"] == 1

    folder = tmp_path / "broken"
    save = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(folder, [Looks(), LooksToo(), save, Stop(7)]).fit(build(True), ResumableLoader())
    again = [Looks(), LooksToo()]
    trainer(folder, again).fit(build(True), ResumableLoader(), ckpt_path=folder / "checkpoints/step=4.ckpt")
    assert times(folder) == whole


def test_times_of_older_files_are_told_apart_by_step_and_phase() -> None:
    line = {"event": "time", "step": 0, "phase": "calibrate", "seconds": 30.0}
    new = [{**line, "by": "A", "number": 0}, {**line, "by": "A", "number": 1}, {**line, "by": "B", "number": 0}]
    assert len(last_of_each([line, line])) == 1
    assert last_of_each([*new, *new]) == new
