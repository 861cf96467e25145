"""The part that calibrates: what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, fit
from support.multimodal_fits import module, stream, trainer
from torch import Tensor

from hpa_lightning.callbacks import FocusPartition, SequentialTuning
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.tuned_layers import TunedLayers


def test_missing_safety_data_is_refused_before_training(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException, match="safety_data"):
        fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [FocusPartition()], tmp_path)


class AnswerInputs(TaskCallback):
    """The Hessians at the answers' positions, and those at the positions whose logits the model's own loss looks at."""

    start_order: ClassVar[int] = StartPhase.MEASURING

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.own(TunedLayers(self))
        settings = {"task_samples": 8, "batch_size": 4, "safety_positions": "answers"}
        self.calibrator = self.own(Calibrator(self.layers, settings=settings, needs_safety_data=False))
        self.compared = 0

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.layers.find(pl_module)
        model: Any = pl_module
        batches = self.calibrator.task_batches(trainer, task)
        found, _ = self.calibrator.hessians(trainer, pl_module, batches, "safety", damped=False)
        rows: dict[str, list[Tensor]] = {name: [] for name in found}
        inputs: dict[str, Tensor] = {}
        hooks = [
            linear.module.register_forward_pre_hook(lambda _, args, name=linear.name: inputs.update({name: args[0]}))
            for linear in self.layers
            if linear.name in found
        ]
        model.eval()
        for batch in batches:
            with torch.enable_grad():
                out = model.model(**batch)
                (gradient,) = torch.autograd.grad(out.loss, out.logits)
            looked_at = gradient.abs().sum(-1) > 0
            assert 0 < int(looked_at.sum()) < int(batch["attention_mask"].sum())
            for name, of_batch in inputs.items():
                rows[name].append(of_batch.detach().reshape(*looked_at.shape, -1)[looked_at].double())
        model.train()
        for hook in hooks:
            hook.remove()
        for name, parts in rows.items():
            x = torch.cat(parts)
            torch.testing.assert_close(found[name].double(), 2 / len(x) * x.T @ x, rtol=1e-4, atol=1e-6)
            self.compared += 1
        self.layers.clear()


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_answers_positions_are_those_of_the_loss(architecture: str, tmp_path: Path) -> None:
    measured = AnswerInputs()
    fit_of = trainer(tmp_path, [SequentialTuning(), measured], max_epochs=-1)
    fit_of.fit(module(architecture=architecture), datamodule=stream(architecture))
    assert measured.compared >= 2 * 2 * 4


def test_answers_positions_need_labels(tmp_path: Path) -> None:
    data = {
        **calibration_data(),
        "calibration": {"safety_samples": 4, "task_samples": 4, "safety_positions": "answers"},
    }
    with pytest.raises(ValueError, match=r"holds no labels of shape \(batch, tokens\)"):
        fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [FocusPartition(**data)], tmp_path)
    with pytest.raises(ValueError, match=r"safety_positions is 'some'; expected one of \['all', 'answers'\]"):
        FocusPartition(calibration={"safety_positions": "some"})  # type: ignore[arg-type]
