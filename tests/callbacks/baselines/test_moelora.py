"""MoELoRA over a stream of tasks: the same mixtures go on, with a fresh optimizer, and a run can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.multimodal_fits import stream, trainer
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import CurrentTask, SequentialTuning, TaskCallback
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.modules.moe_lora import MixtureOfLora


def module() -> MLLMModule:
    model, processor = tiny_llava()
    torch.manual_seed(0)
    return MLLMModule.from_objects(
        model,
        processor,
        lora=LoraSettings(rank=4, alpha=4.0, experts=2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01),
    )


def parts(tuned: MLLMModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tuned.named_parameters() if value.requires_grad}


class Boundaries(TaskCallback):
    """Notes the adapters at each boundary, after everything else has run there."""

    start_order = end_order = 90

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []

    def on_task_start(self, trainer: object, pl_module: MLLMModule, task: CurrentTask) -> None:
        assert not trainer.optimizers[0].state  # type: ignore[attr-defined]
        self.starts.append(parts(pl_module))

    def on_task_end(self, trainer: object, pl_module: MLLMModule, task: CurrentTask) -> None:
        self.ends.append(parts(pl_module))


def test_the_same_mixtures_are_tuned_on(tmp_path: Path) -> None:
    tuned, log = module(), Boundaries()
    frozen = {name: value.clone() for name, value in tuned.named_parameters() if not value.requires_grad}
    trainer(tmp_path, [SequentialTuning(), log]).fit(tuned, stream())
    assert len(log.starts) == len(log.ends) == 2
    for name, value in log.ends[0].items():
        assert torch.equal(log.starts[1][name], value), name
        assert not torch.equal(log.starts[0][name], value) and not torch.equal(log.ends[1][name], value), name
    for name, value in frozen.items():
        assert torch.equal(dict(tuned.named_parameters())[name], value), name
    layers = [layer for layer in tuned.modules() if isinstance(layer, MixtureOfLora)]
    assert len(layers) == 14 and all(layer.lora_b.any() for layer in layers), "nothing was merged"


@pytest.mark.parametrize("step", [2, 3, 5, 6], ids=["first_task", "trained_not_ended", "second_task", "epoch_end"])
def test_resume_in_the_middle_of_the_sequence(step: int, tmp_path: Path) -> None:
    whole = module()
    trainer(tmp_path / "whole", [SequentialTuning()]).fit(whole, stream())
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=step, save_top_k=-1)
    trainer(tmp_path / "cut", [SequentialTuning(), save], enable_checkpointing=True).fit(module(), stream())
    second = module()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.5)  # everything must come from the checkpoint
    resumed = trainer(tmp_path / "second", [SequentialTuning()])
    resumed.fit(second, stream(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")
    assert resumed.global_step == 9
    for (name, expected), actual in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), name
