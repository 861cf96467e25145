"""SafetyLayerFreezing: the chosen blocks do not move by a bit, whatever else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, TRAINERS, dense, fit
from support.multimodal_fits import method, module, stream, trainer
from support.tiny_mllms import training_records

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.callbacks.baselines import SafetyLayerFreezing, TaskVectorMerging
from hpa_lightning.data import CVITDataModule
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.results.result_file import read_results


def parameters_of(module: L.LightningModule, *layers: int) -> dict[str, torch.Tensor]:
    _, blocks = find_decoder_blocks(module)
    return {
        f"{layer}.{name}": parameter.detach().clone()
        for layer in layers
        for name, parameter in blocks[layer - 1].named_parameters()
    }


def unselective(optimizer: Any, tuned: L.LightningModule) -> None:
    """An optimizer over all parameters, as many modules build it."""
    tuned.configure_optimizers = lambda: optimizer(list(tuned.parameters()))  # type: ignore[method-assign]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("selects", [True, False], ids=["selective", "unselective"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_blocks_are_the_same_bit_for_bit(lora: bool, selects: bool, optimizer: str, tmp_path: Path) -> None:
    tuned = foreign_module(OPTIMIZERS[optimizer], lora)
    if not selects:
        unselective(OPTIMIZERS[optimizer], tuned)
    frozen, trained = parameters_of(tuned, 1, 2), parameters_of(tuned, 3)
    fit(tuned, [SafetyLayerFreezing((1, 2))], tmp_path, **TRAINERS["accumulate_and_clip"])
    for name, parameter in parameters_of(tuned, 1, 2).items():
        assert torch.equal(parameter, frozen[name]), name
    assert any(not torch.equal(parameter, trained[name]) for name, parameter in parameters_of(tuned, 3).items())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("beside", ["sequential", "post_training", "task_arithmetic"])
def test_frozen_through_a_stream(lora: bool, beside: str, tmp_path: Path) -> None:
    """Merges, restarted adapters and fusing methods leave the frozen block's effective weights alone."""
    tuned = module(lora)
    before = effective(tuned)
    trainer(tmp_path, [SafetyLayerFreezing((1, 1)), SequentialTuning(), *method(beside)]).fit(tuned, stream())
    moved = [name for name, weight in effective(tuned).items() if not torch.equal(weight, before[name])]
    assert moved and all(".layers.1." in name for name in moved)


def effective(tuned: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in dense(tuned).items() if "language_model" in name}


def harmful_stream() -> CVITDataModule:
    data = stream()
    data.harmful_calibration = training_records(6, seed=43)  # block 1 tells them apart with all supported versions
    return data


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_layers_are_found_at_the_first_task(lora: bool, tmp_path: Path) -> None:
    class Optimizers(L.Callback):
        sizes: list[int] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.sizes.append(sum(len(group["params"]) for group in trainer.optimizers[0].param_groups))

    tuned, sizes = module(lora), Optimizers()
    everything = sum(parameter.requires_grad for parameter in tuned.parameters())
    before = effective(tuned)
    freezing = SafetyLayerFreezing(prompts=6, batch_size=4)
    trainer(tmp_path, [freezing, SequentialTuning(), sizes]).fit(tuned, harmful_stream())
    (event,) = [event for event in read_results(tmp_path / "results.jsonl") if event["event"] == "safety_layers"]
    assert freezing._found == (event["first"], event["last"]) == (1, 1) and event["found"]
    assert len(event["gap_degrees"]) == 2 and event["gap_degrees"][0] >= 0.9 * max(event["gap_degrees"]) > 0
    moved = [name for name, weight in effective(tuned).items() if not torch.equal(weight, before[name])]
    assert moved and all(".layers.1." in name for name in moved)
    assert len(set(sizes.sizes)) == 1 and sizes.sizes[0] < everything, "the optimizers of all tasks leave them out"


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("step", [2, 5])
def test_found_layers_survive_a_resume(lora: bool, step: int, tmp_path: Path) -> None:
    callbacks = lambda: [SafetyLayerFreezing(prompts=6), SequentialTuning()]  # noqa: E731
    whole = module(lora)
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=step, save_top_k=-1)
    trainer(tmp_path / "whole", [*callbacks(), save], enable_checkpointing=True).fit(whole, harmful_stream())
    second = module(lora)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.5)
    resumed = trainer(tmp_path / "second", callbacks())
    resumed.fit(second, harmful_stream(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")
    for (key, expected), actual in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), key

    other = trainer(tmp_path / "third", [SafetyLayerFreezing((2, 2)), SequentialTuning()])
    with pytest.raises(ValueError, match=r"another fit .*SafetyLayerFreezing\.layers"):
        other.fit(module(lora), harmful_stream(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")


def test_given_normal_prompts_take_the_place_of_the_calibration_records(tmp_path: Path) -> None:
    data = harmful_stream()
    freezing = SafetyLayerFreezing(normal_data=list(data.harmful_calibration), prompts=6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer separates"):  # normal and malicious prompts are the same
        trainer(tmp_path, [freezing, SequentialTuning()]).fit(module(), data)


def test_misuse_is_refused(tmp_path: Path) -> None:
    optimizer = OPTIMIZERS["sgd_momentum"]
    for wrong in ((0, 2), (3, 2), (1, 2, 3)):
        with pytest.raises(ValueError, match="first <= last"):
            SafetyLayerFreezing(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 3 blocks"):
        fit(foreign_module(optimizer, True), [SafetyLayerFreezing((2, 4))], tmp_path)
    with pytest.raises(MisconfigurationException, match="nothing is left"):
        fit(foreign_module(optimizer, True), [SafetyLayerFreezing((1, 3))], tmp_path)
    with pytest.raises(MisconfigurationException, match="needs a datamodule"):
        fit(foreign_module(optimizer, True), [SafetyLayerFreezing()], tmp_path)

    freezing = SafetyLayerFreezing()

    class Fake:
        strategy = DDPStrategy()
        callbacks = (freezing,)
        world_size = 1

    with pytest.raises(MisconfigurationException, match="DDP"):
        freezing.setup(Fake(), foreign_module(optimizer, True), "fit")  # type: ignore[arg-type]


def test_frozen_full_layers_are_not_merged(tmp_path: Path) -> None:
    """Without LoRA, methods that look for tuned layers leave the frozen ones out."""
    merging = TaskVectorMerging()
    fit(foreign_module(OPTIMIZERS["adamw_decay"], False), [merging, SafetyLayerFreezing((2, 2))], tmp_path)
    assert len(merging.vectors) == 8 and not any(".1." in name for name in merging.vectors)
