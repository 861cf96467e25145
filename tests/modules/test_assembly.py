"""LLaVA's two stages: what trains, what stage 2 starts with, files of upstream's schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_mllms import evaluation_records, picture, tiny_llava, tiny_qwen
from support.towers import LANGUAGE, TOWERS, tokenizer

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data import CVITDataModule, Task
from hpa_lightning.modules import LoraSettings, MLLMModule, ModelParts, TrainableParts


def llava_files(folder: Path) -> tuple[Path, Path]:
    """``blip_laion_cc_sbu_558k.json`` and ``llava_v1_5_mix665k.json``, as upstream has them."""
    for name in ("00453/004539375.jpg", "coco/train2017/000000033471.jpg", "ocr_vqa/images/0745317061.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(folder / name)
    pretrain = [
        {
            "id": "004539375",
            "image": "00453/004539375.jpg",
            "conversations": [
                {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
                {"from": "gpt", "value": "select luxury furniture 3 - inch gel memory foam mattress topper"},
            ],
        }
    ] * 4
    tuning = [
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
                {"from": "gpt", "value": "The bus in the image is white and red."},
                {"from": "human", "value": "What feature can be seen on the back of the bus?"},
                {"from": "gpt", "value": "The back of the bus features an advertisement."},
            ],
        },
        {
            "id": "wgByO4Y_0",
            "model": "",
            "conversations": [
                {"from": "human", "value": "How do I add a bus to the calendar?"},
                {"from": "gpt", "value": "Open it and click on the plus."},
            ],
        },
        {
            "id": 2354786,
            "image": "ocr_vqa/images/0745317061.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWho wrote this book?\nAnswer the question using a single word."},
                {"from": "gpt", "value": "Smith"},
            ],
        },
    ] * 2
    paths = folder / "blip_laion_cc_sbu_558k.json", folder / "llava_v1_5_mix665k.json"
    for path, rows in zip(paths, (pretrain, tuning), strict=True):
        path.write_text(json.dumps(rows))
    return paths


def parts(folder: Path) -> ModelParts:
    words = tokenizer()
    words.save_pretrained(folder)
    return ModelParts(TOWERS["siglip"][0], {"model_type": "llama", "vocab_size": len(words), **LANGUAGE}, str(folder))


def fit(module: MLLMModule, data: Path, folder: Path) -> L.Trainer:
    task = Task("adapt", train=str(data), test=evaluation_records(2), image_folder=str(data.parent))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SequentialTuning()],
    )
    trainer.fit(module, CVITDataModule([task], processor=module.processor, train_batch_size=2))
    return trainer


def changed(before: dict[str, torch.Tensor], module: MLLMModule) -> set[str]:
    return {name for name, tensor in module.model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_stage_two_starts_with_the_weights_of_stage_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pretrain, tuning = llava_files(tmp_path / "data")
    made = parts(tmp_path / "words")
    first = MLLMModule(parts=made, trainable=TrainableParts(projector=True))
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    with caplog.at_level("INFO"):
        trainer = fit(first, pretrain, tmp_path / "one")
    assert {name.partition(".")[0] for name in changed(before, first)} == {"projector"}
    count = sum(parameter.numel() for parameter in first.model.projector.parameters())
    assert f"trains {count:,} of" in caplog.text and "frozen: vision tower, language model." in caplog.text

    checkpoint = tmp_path / "one" / "checkpoints" / "one.ckpt"
    trainer.save_checkpoint(checkpoint)
    folder = tmp_path / "exported"
    first.export(folder)
    starts = (
        {"parts": made, "start_from": str(checkpoint)},
        {"parts": made, "start_from": str(tmp_path / "one")},  # the run's folder
        {"model": str(folder)},
    )
    tuned: list[MLLMModule] = []
    for start in starts:
        second = MLLMModule(**start, trainable=TrainableParts(projector=True, blocks=(2, 2)))
        for name, tensor in first.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], tensor), name
        tuned.append(second)
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    trainer = fit(tuned[0], tuning, tmp_path / "two")
    prefixes = {
        name.rpartition(".layers.")[2].partition(".")[0] for name in changed(before, tuned[0]) if "layers" in name
    }
    assert prefixes == {"1"} and not any("vision" in name for name in changed(before, tuned[0]))

    # A checkpoint of stage 2 holds all of it: stage 1's may be gone.
    last = tmp_path / "two.ckpt"
    trainer.save_checkpoint(last)
    checkpoint.unlink()
    again = MLLMModule.load_from_checkpoint(last)
    assert not changed(dict(tuned[0].model.state_dict()), again)


def test_lora_beside_the_projector(tmp_path: Path) -> None:
    _, tuning = llava_files(tmp_path / "data")
    module = MLLMModule(
        parts=parts(tmp_path / "words"), trainable=TrainableParts(projector=True), lora=LoraSettings(rank=2)
    )
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("projector.") for name in trained)
    assert any("lora_" in name for name in trained) and "projector.0.weight" in trained
    trainer = fit(module, tuning, tmp_path / "run")
    trainer.save_checkpoint(tmp_path / "lora.ckpt")  # the adapters were merged at the task's end
    later = MLLMModule(parts=parts(tmp_path / "words"), start_from=tmp_path / "lora.ckpt")
    weight = "language_model.model.layers.0.mlp.up_proj"
    assert torch.equal(
        later.model.state_dict()[f"{weight}.weight"], module.model.state_dict()[f"{weight}.base_layer.weight"]
    )
    name = next(name for name, _ in module.model.named_parameters() if "lora_B" in name)
    module.model.get_parameter(name).data.fill_(1.0)
    trainer.save_checkpoint(tmp_path / "open.ckpt")
    with pytest.raises(ValueError, match="adapters that are not merged"):
        MLLMModule(parts=parts(tmp_path / "words"), start_from=tmp_path / "open.ckpt")


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen])
def test_parts_of_other_architectures(build: Any) -> None:
    model, processor = build()
    module = MLLMModule.from_objects(model, processor, trainable=TrainableParts(projector=True, names=["lm_head.*"]))
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert "lm_head.weight" in trained and any("projector" in name or "merger" in name for name in trained)
    module = MLLMModule.from_objects(model, processor, trainable=TrainableParts(language_model=True))
    rest = {name for name, parameter in module.model.named_parameters() if not parameter.requires_grad}
    assert rest and all("vision" in name or "visual" in name or "projector" in name for name in rest)


def test_what_matches_nothing_is_refused(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"trainable": TrainableParts(names=["lm_haed.*"])}, "'lm_haed.*' matches no parameter"),
        ({"trainable": TrainableParts(blocks=(1, 3))}, "has 2 blocks"),
        ({"trainable": TrainableParts(projector=True), "train_modules": ["lm_head"]}, "one way to say"),
        ({"trainable": TrainableParts(language_model=True), "lora": LoraSettings()}, "leave one out"),
        ({"start_from": tmp_path / "no.ckpt"}, "there is no checkpoint"),
        ({"start_from": tmp_path}, "holds no whole checkpoint"),
    ]
    for settings, message in bad:
        with pytest.raises(ValueError, match=message):
            MLLMModule.from_objects(model, processor, **settings)
    with pytest.raises(ValueError, match="trainable names no part"):
        TrainableParts()
    with pytest.raises(ValueError, match="expected one: blocks are a part of it"):
        TrainableParts(language_model=True, blocks=(1, 2))
    with pytest.raises(ValueError, match=r"\[first, last\]"):
        TrainableParts(blocks=(2, 1))
    words, _ = tiny_llava(layers=1)
    trainer = L.Trainer(accelerator="cpu", logger=False, max_steps=0, enable_progress_bar=False, barebones=False)
    other = MLLMModule.from_objects(words, processor)
    trainer.strategy.connect(other)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="does not fit the LlavaForConditionalGeneration: it lacks 9 weights"):
        MLLMModule.from_objects(tiny_llava()[0], processor, start_from=tmp_path / "other.ckpt")
