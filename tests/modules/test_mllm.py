from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_mllms import evaluation_records, tiny_idefics3, tiny_llava, tiny_qwen, tiny_timm, training_records
from torch import nn
from transformers import AutoModelForImageTextToText

from hpa_lightning.data import CVITDataModule, EvaluationSet, MLLMCollator, Record, Task
from hpa_lightning.data.record import user_turn
from hpa_lightning.modules import LoraSettings, MLLMModule

BUILDERS = [tiny_llava, tiny_qwen, tiny_idefics3, tiny_timm]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def objects(request: Any) -> Any:
    return request.param()


def muted(module: MLLMModule) -> MLLMModule:
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


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


def test_export_is_one_folder_that_loads(objects: Any, tmp_path: Path) -> None:
    module = muted(MLLMModule.from_objects(*objects, lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    module.eval()
    module.export(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert not any("lora" in name for name, _ in again.named_parameters())
    loaded = MLLMModule(model=str(tmp_path))
    assert {type(module) for module in again.modules()} == {type(module) for module in loaded.model.modules()}
    batch = MLLMCollator(loaded.processor).train(training_records(2))
    own = MLLMCollator(module.processor).train(training_records(2))
    # transformers may load the same image processor with another backend, which resizes a little differently.
    backends = {type(getattr(processor, "image_processor", None)) for processor in (loaded.processor, module.processor)}
    exact = [key for key in own if key != "pixel_values" or len(backends) == 1]
    assert all(torch.equal(batch[key], own[key]) for key in exact) and {"input_ids", "labels"} <= set(exact)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, module.model(**batch).logits, rtol=1e-4, atol=1e-4)
        assert (module.model(**batch).logits - objects_logits(objects, batch)).abs().max() > 1e-3


def objects_logits(objects: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits without the adapters."""
    model = objects[0]
    scales = [m for m in model.modules() if hasattr(m, "lora_B")]
    for layer in scales:
        layer.lora_B["default"].weight.data.zero_()
    return model(**batch).logits


def test_configuration_gives_random_weights(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    module = MLLMModule(config=model.config.to_dict(), processor=processor)
    assert type(module.model) is type(model)
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    from_folder = MLLMModule(config=str(tmp_path), dtype="bfloat16", attn_implementation="eager")
    assert from_folder.model.dtype == torch.bfloat16
    assert from_folder.model.config._attn_implementation == "eager"
    batch = MLLMCollator(from_folder.processor).train(training_records(1))
    assert torch.isfinite(muted(from_folder).training_step(batch, 0))  # float32 pixels, bfloat16 weights


def test_settings_that_cannot_be_are_refused() -> None:
    model, processor = tiny_llava()
    with pytest.raises(ValueError, match=r"expected either model= .* or config="):
        MLLMModule()
    with pytest.raises(ValueError, match=r"expected either model= .* or config="):
        MLLMModule(model=model, config={}, processor=processor)
    with pytest.raises(ValueError, match="no processor: pass processor="):
        MLLMModule(model=model)
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


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_train_modules_choose_what_is_tuned(lora: LoraSettings | None) -> None:
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, lora=lora, train_modules=["model.multi_modal_projector"])
    tuned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    projector = {name for name in tuned if "multi_modal_projector" in name}
    assert len(projector) == 4
    assert tuned - projector == ({name for name, _ in module.named_parameters() if "lora_" in name} if lora else set())
    whole = MLLMModule.from_objects(*tiny_llava(), freeze_vision=False)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    assert all(submodule.training for submodule in whole.modules())


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


class Echo(nn.Module):
    """Answers every prompt with the tokens of a fixed text: scores are then known."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokens = tokens

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        answer = torch.tensor(self.tokens[: kwargs["max_new_tokens"]]).expand(len(input_ids), -1)
        return torch.cat([input_ids, answer], dim=1)


class SecondPrompt:
    """A judge that looks at the prompts, as guard models do."""

    judges = "refusal"
    needs_prompts = True

    def __call__(self, responses: list[str], prompts: list[str] | None = None) -> list[bool]:
        return ["harm 1" in prompt for prompt in prompts or ()]


def test_validate_test_and_predict_score_each_set_by_its_metric() -> None:
    processor = tiny_llava()[1]
    test = [Record("0", user_turn("a?"), answers=("I cannot",)), Record("1", user_turn("b?"), answers=("no",))]
    harm = [Record(f"h{index}", user_turn(f"harm {index}")) for index in range(3)]
    choices = [
        Record(f"c{index}", user_turn("c?"), answers=(right,), choices=("yes", "no"))
        for index, right in enumerate(("no", "no", "yes"))
    ]
    sets = [
        EvaluationSet("benign", "over_refusal", harm[:2]),
        EvaluationSet("attack", "safety", harm),
        EvaluationSet("short", "safety", harm, max_new_tokens=2),
        EvaluationSet("published", "safety", harm, judge=SecondPrompt()),
        EvaluationSet("choice", "safety", choices, metric="unsafe_choice_rate"),
    ]
    data = CVITDataModule([Task("a", training_records(2), test)], safety_sets=sets, eval_batch_size=1)
    module = MLLMModule.from_objects(Echo(processor.tokenizer.encode(" I cannot")), processor)
    asked: list[Any] = []
    module.choose = lambda records, collator, size: asked.extend(records) or [[-1.0, -2.0]] * len(records)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    (scores, *_) = trainer.test(module, datamodule=data, verbose=False)
    assert scores == {
        "a/exact_match": 0.5,
        "attack/attack_success_rate": 0.0,
        "short/attack_success_rate": 1.0,
        "benign/over_refusal_rate": 1.0,
        "published/attack_success_rate": pytest.approx(2 / 3),  # by the set's own judge
        "choice/unsafe_choice_rate": pytest.approx(2 / 3),
        "evaluation/average_performance": 0.5,
        "evaluation/mean_attack_success_rate": pytest.approx((0 + 1 + 2 / 3 + 2 / 3) / 4),
        "evaluation/over_refusal": 1.0,
    }
    assert asked == choices
    assert trainer.validate(module, datamodule=data, verbose=False) == [
        {"a/exact_match": 0.5, "validation/average_performance": 0.5}
    ]
    data.predict_data = harm
    (batch, *rest) = trainer.predict(module, datamodule=data)
    said = {"id": "h0", "prompt": "USER: harm 0 ASSISTANT:", "response": "I cannot", "cut": False}
    assert batch == [said] and len(rest) == 2


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
