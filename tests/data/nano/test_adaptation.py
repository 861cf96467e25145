"""The stages of the adaptation of the embedded text model."""

from __future__ import annotations

import random
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data import MLLMCollator
from hpa_lightning.data.nano import NanoAdaptationDataModule, load_nano_model
from hpa_lightning.data.nano.adaptation import caption, instruction, safety_examples
from hpa_lightning.data.nano.examples import draw
from hpa_lightning.data.nano.lexicon import ALARMING_PAIRS, HARMFUL_PAIRS, REFUSALS
from hpa_lightning.data.nano.text_conversations import spoken_request
from hpa_lightning.modules import MLLMModule, NanoAdaptationModule, NanoAdaptationPreferenceModule, TrainableParts
from hpa_lightning.modules.lora import LoraSettings


def test_instructions_are_safe_and_the_safety_set_is_unseen() -> None:
    rng = random.Random(0)
    assert not any(example.answer in REFUSALS for example in (instruction(rng) for _ in range(600)))
    drawn = safety_examples(60, 0)
    refused = [example for example in drawn if example.answer in REFUSALS]
    assert len(refused) == 30
    tested = {example.key for example in draw(spoken_request("test", HARMFUL_PAIRS), "test", "nano", 100)}
    assert not tested & {example.key for example in drawn}
    assert draw(spoken_request("test", ALARMING_PAIRS), "test", "nano", 100)[0].answer.startswith("to ")
    assert "image" not in caption(rng).question


def test_a_stage_and_what_it_refuses(tmp_path: Path) -> None:
    module = NanoAdaptationModule(trainable=TrainableParts(projector=True))
    tower = load_nano_model()[0].model.vision_tower.state_dict()
    assert all(torch.equal(weight, tower[name]) for name, weight in module.model.vision_tower.state_dict().items())
    stage = NanoAdaptationDataModule("projector", steps=2, test_size=4, processor=module.processor)
    sets = {item.name: item.kind for item in stage.evaluation_sets()}
    assert next(iter(sets)) == "adaptation" and sets["spoken"] == "safety" and sets["harmless-spoken"] == "over_refusal"
    batch = MLLMCollator(module.processor).train(stage.tasks[0].train[:3])
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    module.export(tmp_path / "folder")
    again = MLLMModule(model=str(tmp_path / "folder"))
    with torch.no_grad():
        assert torch.equal(again.model.eval()(**batch).logits, module.model.eval()(**batch).logits)
    for arguments, message in (
        ({"stage": "pretraining"}, "expected one of projector"),
        ({"stage": "safety", "safety_size": 10}, "mixed into 'instructions' alone"),
        ({"steps": 0}, "steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            NanoAdaptationDataModule(**arguments)  # type: ignore[arg-type]


def test_the_safety_set_as_preference_pairs_is_trained_on(tmp_path: Path) -> None:
    """Harmful inputs: the refusal is preferred; harmless ones that look harmful: the advice is."""
    module = NanoAdaptationPreferenceModule(lora=LoraSettings(rank=4, alpha=8.0))
    small = {"steps": 2, "train_batch_size": 4, "test_size": 4, "calibration_size": 4}
    stream = NanoAdaptationDataModule("preference", processor=module.processor, **small)
    (task,) = stream.tasks
    answers = NanoAdaptationDataModule("safety", processor=module.processor, **small).tasks[0]
    assert [record.messages for record in task.train] == [record.messages for record in answers.train]
    for record in task.train:
        chosen = record.messages[-1]["content"][0]["text"]
        assert (chosen in REFUSALS) != (record.rejected in REFUSALS)
    before = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        logger=CSVLogger(str(tmp_path)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SequentialTuning()],
    )
    trainer.fit(module, datamodule=stream)
    moved = [name for name, weight in module.model.state_dict().items() if not torch.equal(weight, before[name])]
    assert moved and not any("vision_tower" in name or "projector" in name for name in moved)


def test_the_skill_in_words_is_a_set_of_its_own() -> None:
    """What the text model knew before any picture is helpfulness beside the task, and its questions hold no picture."""
    stream = NanoAdaptationDataModule("instructions", steps=2, test_size=40)
    (item,) = [item for item in stream.evaluation_sets() if item.kind == "helpfulness"]
    records = list(item.data)  # type: ignore[arg-type]
    assert item.name == "text-skill" and len(records) == 40 and not any(record.images for record in records)
    assert any("bar is" in record.messages[0]["content"][0]["text"] for record in records)
