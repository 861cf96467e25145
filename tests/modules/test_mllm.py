"""MLLMModule: training, generation, gradient checkpointing, optimizers, checkpoints, YAML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from support import multimodal_fits as fits
from support.muted_modules import muted
from support.tiny_mllms import evaluation_records, tiny_idefics3, tiny_llava, tiny_qwen, tiny_timm, training_records

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.modules import LoraSettings, MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BUILDERS = [tiny_llava, tiny_qwen, tiny_idefics3, tiny_timm]


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def objects(request: Any) -> Any:
    return request.param()


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
def test_training_lowers_the_loss_and_moves_what_it_should(objects: Any, lora: LoraSettings | None) -> None:
    module = muted(MLLMModule.from_objects(*objects, lora=lora))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    batch = MLLMCollator(module.processor).train(training_records(4, text_only_every=4))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(5):
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    if lora is not None:
        assert all(".lora_" in name for name in moved)
    else:
        assert not any("vision" in name or "visual" in name for name in moved)
        assert any("lm_head" in name for name in moved)


def test_padding_does_not_change_the_answer(objects: Any) -> None:
    module = MLLMModule.from_objects(*objects)
    collator = MLLMCollator(module.processor)
    records = [*evaluation_records(3), Record("t", user_turn("A question without any picture in it, and a longer one"))]
    together = module.generate(collator.generate(records), max_new_tokens=6)
    alone = [module.generate(collator.generate([record]), max_new_tokens=6)[0] for record in records]
    assert together == alone
    assert len(set(together)) > 1


def test_generation_is_greedy_and_stops_at_the_end_of_turn(objects: Any) -> None:
    """Token by token through the plain forward pass."""
    module = MLLMModule.from_objects(*objects)
    collator = MLLMCollator(module.processor)
    (record,) = evaluation_records(1)
    batch = collator.generate([record])
    inputs = {k: v for k, v in batch["inputs"].items() if k != "mm_token_type_ids"}
    prompt = inputs["input_ids"].shape[1]
    module.eval()
    for _ in range(4):
        with torch.no_grad():
            following = module.model(**inputs).logits[:, -1].argmax(dim=-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], following], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    tokens = inputs["input_ids"][0, prompt:].tolist()
    stops = collator.template.stop_token_ids()
    assert not set(tokens) & set(stops)
    decode = module.processor.tokenizer.decode
    assert module.generate(batch, max_new_tokens=4) == [decode(tokens, skip_special_tokens=True).strip()]
    third = tokens.index(tokens[2])
    module._stop_token_ids = [tokens[2]]
    expected = decode(tokens[: third + 1], skip_special_tokens=True).strip()
    assert module.generate(batch, max_new_tokens=4) == [expected]


def test_generate_leaves_modes_gradients_and_random_state(objects: Any) -> None:
    module = MLLMModule.from_objects(*objects)
    modes = {name: submodule.training for name, submodule in module.named_modules()}
    assert modes[""] and not all(modes.values())  # the fixed vision tower stays in eval mode
    random_state = torch.get_rng_state()
    module.generate(MLLMCollator(module.processor).generate(evaluation_records(2)), max_new_tokens=2)
    assert {name: submodule.training for name, submodule in module.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_settings_that_cannot_be_are_refused() -> None:
    model, processor = tiny_llava()
    with pytest.raises(ValueError, match=r"expected either model= .* or config="):
        MLLMModule()
    with pytest.raises(ValueError, match=r"expected either model= .* or config="):
        MLLMModule(model=model, config={}, processor=processor)
    with pytest.raises(ValueError, match="no processor: pass processor="):
        MLLMModule(model=model)
    with pytest.raises(ValueError, match=r"model /none/model is no folder here, and the Hub gave no model: .*build`"):
        MLLMModule(model="/none/model")
    with pytest.raises(ValueError, match="expected 'model_type' among them"):
        MLLMModule(config={"hidden_size": 3}, processor=processor)
    with pytest.raises(ValueError, match=r"train_modules \['model.nothing'\] are no submodules"):
        MLLMModule.from_objects(model, processor, train_modules=["model.nothing"])
    with pytest.raises(ValueError, match="lr_scheduler_interval is 'batch'"):
        MLLMModule.from_objects(model, processor, lr_scheduler_interval="batch")
    model.requires_grad_(False)
    module = MLLMModule.from_objects(model, processor, train_modules=[])
    with pytest.raises(ValueError, match="no parameter is trainable"):
        module.configure_optimizers()


def test_every_call_configures_fresh_optimizers() -> None:
    module = MLLMModule.from_objects(
        *tiny_llava(),
        lora=LoraSettings(rank=2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    )
    first, second = module.configure_optimizers(), module.configure_optimizers()
    assert first["optimizer"] is not second["optimizer"]
    assert second["lr_scheduler"]["scheduler"].optimizer is second["optimizer"]
    parameters = first["optimizer"].param_groups[0]["params"]
    assert {id(p) for p in parameters} == {id(p) for p in module.parameters() if p.requires_grad}
    default = MLLMModule.from_objects(*tiny_llava()).configure_optimizers()
    assert isinstance(default, torch.optim.AdamW)
    assert (default.param_groups[0]["lr"], default.param_groups[0]["weight_decay"]) == (2e-4, 0.0)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    batch = MLLMCollator(tiny_llava()[1]).train(training_records(2))
    gradients = []
    for checkpointing in (False, True):
        module = muted(
            MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2), gradient_checkpointing=checkpointing)
        )
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        module.training_step(batch, 0).backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    module = MLLMModule(model=str(tmp_path / "model"), lora=LoraSettings(rank=3))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    torch.load(tmp_path / "x.ckpt", weights_only=True)
    again = MLLMModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.lora == LoraSettings(rank=3)
    reference = dict(model.named_parameters())
    for name, parameter in again.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, reference[name.replace(".base_layer", "")])


def test_a_fit_from_yaml(tmp_path: Path) -> None:
    """All settings from the command line's YAML, the checkpoint resumed by the same."""
    import yaml
    from support.tiny_mllms import write_llava_json

    from hpa_lightning.cli import main

    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for index, name in enumerate("ab"):
        write_llava_json(tmp_path / f"{name}.json", training_records(4, seed=index, name=name), tmp_path / "images")
        write_llava_json(
            tmp_path / f"{name}t.json", training_records(2, seed=9 + index, name=f"t{name}"), tmp_path / "images"
        )
    write_llava_json(tmp_path / "harm.json", training_records(3, seed=20, name="h"), tmp_path / "images")
    images = str(tmp_path / "images")
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keep = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "ck")}}
    keep["init_args"]["save_last"] = True  # type: ignore[index]
    tasks = [
        {"name": name, "train": str(tmp_path / f"{name}.json"), "test": str(tmp_path / f"{name}t.json"), "steps": 2}
        for name in "ab"
    ]
    safety = {"name": "attack", "kind": "safety", "data": str(tmp_path / "harm.json"), "max_new_tokens": 2}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    config = {
        "trainer": {
            **quiet,
            "reload_dataloaders_every_n_epochs": 1,
            "default_root_dir": str(tmp_path),
            "callbacks": [{"class_path": "hpa_lightning.callbacks.SequentialTuning"}, keep],
        },
        "model": {
            "class_path": "hpa_lightning.modules.MLLMModule",
            "init_args": {"model": str(tmp_path / "model"), "lora": {"rank": 2}, "optimizer": sgd},
        },
        "data": {
            "class_path": "hpa_lightning.data.CVITDataModule",
            "init_args": {
                "train_batch_size": 2,
                "task_order": ["b", "a"],
                "tasks": [{**task, "image_folder": images} for task in tasks],
                "safety_sets": [{**safety, "image_folder": images}],
                "harmful_injection": {"data": str(tmp_path / "harm.json"), "ratio": 0.2, "image_folder": images},
                "allow_overlap": True,
            },
        },
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "fit.yaml")])
    saved = torch.load(tmp_path / "ck" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert saved["CVITDataModule"]["tasks"] == ["b", "a"]
    assert {name: len(drawn) for name, drawn in saved["CVITDataModule"]["injected"].items()} == {"a": 1, "b": 1}
    main(["test", "--config", str(tmp_path / "fit.yaml"), "--ckpt_path", str(tmp_path / "ck" / "last.ckpt")])
    again = MLLMModule.load_from_checkpoint(tmp_path / "ck" / "last.ckpt")
    assert isinstance(again.configure_optimizers(), torch.optim.SGD) and again.lora == LoraSettings(rank=2)


@pytest.mark.parametrize("schedule", [None, {"name": "linear"}])
def test_a_finder_s_trials_renew_a_schedule_and_leave_an_optimizer_alone(schedule: dict[str, str] | None) -> None:
    """Without a schedule the rate that LearningRateFinder has set in the optimizer is the one to train with."""
    renewed: list[object] = []
    tuned = fits.module(lr_scheduler=schedule)
    tuned._trainer = SimpleNamespace(  # type: ignore[assignment]
        ckpt_path=".lr_find_0.ckpt", strategy=SimpleNamespace(setup_optimizers=renewed.append)
    )
    tuned.on_train_start()
    assert len(renewed) == (schedule is not None)
