"""LinearMerging: what is kept after each task, from weights observed independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, dense

from hpa_lightning.callbacks import CurrentTask, TaskCallback
from hpa_lightning.callbacks.baselines import LinearMerging
from hpa_lightning.modules.lora import lora_layers


class Trained(TaskCallback):
    """The weights at each task's end, before anything is merged."""

    end_order = 0

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.weights.append({name: weight.clone() for name, weight in dense(pl_module).items()})


def two_fits(module: L.LightningModule, callbacks: list[L.Callback], folder: Path) -> list[dict[str, torch.Tensor]]:
    """Two tasks; returns the weights that were kept before, after the first and after the second."""
    trainer = quiet_trainer(folder, callbacks, max_epochs=1)
    kept = [{name: weight.clone() for name, weight in dense(module).items()}]
    for number in range(2):
        trainer.fit_loop.max_epochs = number + 1
        trainer.fit(module, token_loader(number, 20))
        kept.append({name: weight.clone() for name, weight in dense(module).items()})
    return kept


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reference", ["aligned", "before_task"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kept_weights(lora: bool, reference: Any, share: float, tmp_path: Path) -> None:
    module, trained = foreign_module(OPTIMIZERS["adamw_decay"], lora), Trained()
    merging = LinearMerging(share, reference)
    kept = two_fits(module, [trained, merging], tmp_path)
    for task in range(2):
        safe = kept[0] if reference == "aligned" else kept[task]
        for name, weight in kept[task + 1].items():
            tuned = trained.weights[task][name]
            assert not torch.equal(tuned, safe[name])
            if share == 1.0:
                assert torch.equal(weight, safe[name])
            elif share == 0.0 and not lora:
                assert torch.equal(weight, tuned)
            else:
                expected = (1 - share) * tuned.numpy() + share * safe[name].numpy()
                torch.testing.assert_close(weight, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert bool(merging.aligned) == (reference == "aligned")
    assert all(not factors.lora_b.any() for _, factors in lora_layers(module))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        LinearMerging(share=1.2)
    with pytest.raises(ValueError, match="reference"):
        LinearMerging(reference="last")  # type: ignore[arg-type]


def test_a_start_in_the_middle_of_a_stream_is_refused(tmp_path: Path) -> None:
    module, merging = foreign_module(OPTIMIZERS["adamw_decay"], True), LinearMerging()
    merging._finished_tasks = 1
    with pytest.raises(ValueError, match="before the first task"):
        two_fits(module, [merging], tmp_path)
