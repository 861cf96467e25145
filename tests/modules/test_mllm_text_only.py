"""Models that read text alone: trained, chosen with, evaluated, calibrated, fused and exported like the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from support.foreign_module import quiet_trainer
from support.tiny_mllms import picture, tiny_tokenizer, training_records, write_llava_json
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hpa_lightning.callbacks import CalibrationSettings, HarmoniousFusion, RetentionSettings
from hpa_lightning.cli import main
from hpa_lightning.data import CVITDataModule, MLLMCollator, Record, Task
from hpa_lightning.data.record import assistant_turn, message_text, user_turn
from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.modules.blocks import find_decoder_blocks

# As Qwen2.5 writes it: the content of a turn is a string.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def text_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("<|im_start|>",))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def causal(kind: type, config: type, seed: int = 0, **settings: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = text_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = SIZES | {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "bos_token_id": None} | settings
        return kind(
            config(**sizes, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        ), tokenizer


def llama() -> tuple[Any, Any]:
    return causal(LlamaForCausalLM, LlamaConfig)


def qwen2() -> tuple[Any, Any]:
    return causal(Qwen2ForCausalLM, Qwen2Config)


def gemma2() -> tuple[Any, Any]:
    return causal(Gemma2ForCausalLM, Gemma2Config, head_dim=8)


def texts(count: int, seed: int = 0, name: str = "r") -> list[Record]:
    return training_records(count, seed, name, text_only_every=1)


BUILDERS = [llama, qwen2, gemma2]


@pytest.mark.parametrize("build", BUILDERS)
def test_a_batch_of_texts_equals_single_texts(build: Callable[[], tuple[Any, Any]]) -> None:
    model, tokenizer = build()
    module, collator = MLLMModule.from_objects(model, tokenizer).eval(), MLLMCollator(tokenizer)
    system = ({"role": "system", "content": [{"type": "text", "text": "Be brief."}]},)
    several = Record(
        "several", (*system, *user_turn("Is it?"), *assistant_turn("yes"), *user_turn("And?"), *assistant_turn("no"))
    )
    records = [*texts(2), several]
    batch, singles = collator.train(records), [collator.train([record]) for record in records]
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    for row, (record, single) in enumerate(zip(records, singles, strict=True)):
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["labels"][row, :length], single["labels"][0])
        answers = [message_text(turn) for turn in record.messages if turn["role"] == "assistant"]
        labels = batch["labels"][row]
        assert tokenizer.decode(labels[labels != -100]) == "".join(f"{answer}<|im_end|>" for answer in answers)
    answers = module.generate(collator.generate(records), max_new_tokens=4)
    assert answers == [module.generate(collator.generate([one]), max_new_tokens=4)[0] for one in records]
    choice = Record("c", user_turn("What?"), choices=("red", "a blue square"))
    longer = Record("d", user_turn("What is it here? " * 4), choices=("yes", "no"))
    together = module.choose([choice, longer], collator)
    alone = [module.choose([one], collator, batch_size=1)[0] for one in (choice, longer)]
    assert [pytest.approx(row, abs=1e-5) for row in alone] == together


def test_templates_that_expect_parts_and_the_plain_one() -> None:
    tokenizer = text_tokenizer()
    expected = MLLMCollator(tokenizer).train(texts(2))
    parts = TEMPLATE.replace("message.content", "message.content[0].text")
    batch = MLLMCollator(tokenizer, chat_template=parts).train(texts(2))
    assert torch.equal(batch["input_ids"], expected["input_ids"]) and torch.equal(batch["labels"], expected["labels"])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        MLLMCollator(tokenizer)
    (record,) = texts(1)
    prompts = MLLMCollator(tokenizer, chat_template="plain").generate([record])["prompts"]
    assert prompts == [f"USER: {record.prompt}\nASSISTANT:"]


def test_a_record_with_an_image_is_named() -> None:
    collator = MLLMCollator(text_tokenizer())
    record = Record("i", (*user_turn("What?", 1), *assistant_turn("red")), (picture(1),), source="train.json[7]")
    for collate in (collator.train, collator.generate):
        with pytest.raises(ValueError, match=r"train.json\[7\]: 1 images, but .* the model reads text alone"):
            collate([*texts(1), record])
    stream = CVITDataModule([Task("t", [record], texts(1, 5, "e"), epochs=1)], processor=text_tokenizer())
    with pytest.raises(ValueError, match=r"train.json\[7\]: 1 images, but"):
        list(stream.train_dataloader())


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_a_stream_of_text_tasks_from_yaml(tmp_path: Path, lora: dict[str, int] | None) -> None:
    """Two text tasks and a text safety set, scored before and after each task; the processor is found in the folder."""
    model, tokenizer = qwen2()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for index, name in enumerate(("a", "b", "a-test", "b-test", "attack")):
        write_llava_json(tmp_path / f"{name}.json", texts(4, index, name), tmp_path)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    path = lambda name: str(tmp_path / f"{name}.json")  # noqa: E731
    config = {
        "trainer": {
            **dict.fromkeys(quiet, False),
            "accelerator": "cpu",
            "reload_dataloaders_every_n_epochs": 1,
            "default_root_dir": str(tmp_path),
            "callbacks": [
                {"class_path": f"hpa_lightning.callbacks.{name}"} for name in ("SequentialTuning", "TaskEvaluation")
            ],
        },
        "model": {
            "class_path": "hpa_lightning.modules.MLLMModule",
            "init_args": {"model": str(tmp_path / "model"), "lora": lora},
        },
        "data": {
            "class_path": "hpa_lightning.data.CVITDataModule",
            "init_args": {
                "train_batch_size": 2,
                "tasks": [{"name": n, "train": path(n), "test": path(f"{n}-test"), "steps": 2} for n in "ab"],
                "safety_sets": [{"name": "attack", "kind": "safety", "data": path("attack"), "max_new_tokens": 2}],
            },
        },
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "fit.yaml")])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    scored = {(line["step"], line["set"]) for line in lines if line["event"] == "score"}
    assert scored == {(step, name) for step in (-1, 0, 1) for name in ("a", "b", "attack")}


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_hpa_on_text_keeps_the_retained_columns_and_exports(tmp_path: Path, lora: LoraSettings | None) -> None:
    model, tokenizer = llama()
    module, collator = MLLMModule.from_objects(model, tokenizer, lora=lora), MLLMCollator(tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fusion = HarmoniousFusion(
        safety_data=[collator.train(texts(2, 7, "s"))],
        calibration=CalibrationSettings(safety_samples=2, task_samples=4, batch_size=2),
        retention=RetentionSettings(p_min=25.0, p_max=25.0),
    )
    stream = CVITDataModule([Task("t", texts(4), texts(2, 5, "e"), epochs=1)], train_batch_size=2)
    trainer = quiet_trainer(tmp_path, [fusion], reload_dataloaders_every_n_epochs=1)
    trainer.fit(module, stream)
    module.export(tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").state_dict()
    name = "model.layers.0.self_attn.q_proj"
    old = before.get(f"{name}.weight", before.get(f"{name}.base_layer.weight"))
    assert int((exported[f"{name}.weight"] == old).all(dim=0).sum()) == 8
    again = MLLMModule(str(tmp_path / "exported"))
    batch = collator.generate(texts(2))
    assert again.generate(batch, max_new_tokens=3) == module.generate(batch, max_new_tokens=3)


@pytest.mark.parametrize("tuning", ["full", "adapter"])
def test_fuse_of_language_models(tmp_path: Path, tuning: str) -> None:
    model, tokenizer = llama()
    before, after = tmp_path / "before", tmp_path / "after"
    model.save_pretrained(before)
    tokenizer.save_pretrained(before)
    generator = torch.Generator().manual_seed(1)
    old = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tuned = model
    if tuning == "adapter":
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if tuning == "full" or ".lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    tuned.save_pretrained(after)
    settings = {
        "retention": RetentionSettings(p_min=25.0, p_max=25.0),
        "calibration": CalibrationSettings(safety_samples=2, task_samples=4, batch_size=2),
    }
    audit = fuse_checkpoints(before, after, tmp_path / "fused", texts(2, 1, "s"), texts(4, 2, "t"), **settings)  # type: ignore[arg-type]
    assert len(audit["layers"]) == (14 if tuning == "full" else 4)
    fused = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    for entry in audit["layers"]:
        weight = fused.get_submodule(entry["module"]).weight
        same = (weight == old[f"{entry['module']}.weight"]).all(dim=0)
        assert int(same.sum()) == entry["retained"] == round(0.25 * weight.shape[1])
    module = MLLMModule(str(tmp_path / "fused"))
    assert type(module.processor).__name__ == type(MLLMModule(str(before)).processor).__name__
    assert len(module.generate(MLLMCollator(module.processor).generate(texts(2)), max_new_tokens=2)) == 2


def test_conv1d_and_encoder_decoders_are_refused_in_words(tmp_path: Path) -> None:
    tokenizer = text_tokenizer()
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=len(tokenizer)))
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32}
    bart = BartForConditionalGeneration(BartConfig(**sizes, **heads, vocab_size=len(tokenizer)))
    for name, model, message in (("gpt2", gpt2, "consist of Conv1D"), ("bart", bart, "encoder-decoder")):
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            find_decoder_blocks(model)
        with pytest.raises(ValueError, match=message):
            fuse_checkpoints(folder, folder, tmp_path / "out", texts(2), texts(2))
        with pytest.raises(ValueError, match=message):
            MLLMModule(str(folder), lora=LoraSettings(rank=2))
    find_decoder_blocks(bart, "model.decoder.layers")
