"""Preference tuning: equal to TRL, on several architectures, resumed bit for bit, one mean over accumulated batches."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support import pairs_script
from support.pairs import pairs, quiet, stream_with_pairs
from support.preference_fits import ARCHITECTURES, assert_equal, fit, module, weights
from support.programs import run_script
from support.tiny_mllms import tiny_llava, training_records
from torch.utils.data import DataLoader

from hpa_lightning.callbacks import HarmoniousFusion, TaskEvaluation
from hpa_lightning.data import CVITDataModule, MLLMCollator, Replay, Task
from hpa_lightning.data.record import assistant_turn
from hpa_lightning.modules import LoraSettings, MLLMModule, PreferenceModule, PreferenceSettings
from hpa_lightning.modules.lora import adapters_off
from hpa_lightning.results.run_results import RunResults

PLAIN: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "beta": 0.3,
    "max_length": None,
}
"""TRL's settings of every comparison with it."""


def scattered(tuned: Any) -> Any:
    """With adapters that are not 0, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=generator)
    return tuned


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "bco_pair", "nca_pair"])
def test_loss_and_gradient_are_those_of_trl(loss: Any, tmp_path: Path) -> None:
    """Its trainer on the same model, adapters and tensors, pictures included, with the base as the reference."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig

    smoothing = 0.1 if loss == "robust" else 0.0
    settings = PreferenceSettings(loss=loss, beta=0.3, label_smoothing=smoothing)
    lora = LoraSettings(rank=2, alpha=16.0, target_modules=["q_proj", "down_proj"])
    ours = scattered(module(preference=settings, lora=lora))
    logged: dict[str, float] = {}
    ours.log_dict = lambda values, **_: logged.update(values)
    arguments = trl.DPOConfig(**PLAIN, output_dir=str(tmp_path), loss_type=loss, label_smoothing=smoothing)
    theirs = trl.DPOTrainer(
        model=tiny_llava()[0],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "images": []}]),
        processing_class=ours.processor,
        peft_config=LoraConfig(r=2, lora_alpha=16, target_modules=r".*language_model.*(q_proj|down_proj)"),
    )
    adapters = {name: p for name, p in ours.model.named_parameters() if "lora_" in name}
    named = {
        name.replace("base_model.model.", "", 1): p for name, p in theirs.model.named_parameters() if "lora_" in name
    }
    assert named.keys() == adapters.keys() and len(named) == 8
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(adapters[name])
    batch = MLLMCollator(ours.processor).pairs(pairs(4))
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "pair_numbers")}
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, {**inputs, "completion_mask": (batch["labels"] != -100).long()})
    found = ours.training_step(batch, 0)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)
    expected.backward()
    found.backward()
    for name, parameter in named.items():
        assert parameter.grad is not None and adapters[name].grad is not None
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(adapters[name].grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale)
    for name, value in logged.items():
        assert float(value) == pytest.approx(theirs._metrics["train"][name][-1], rel=1e-5, abs=1e-6)
    assert set(logged) == {f"rewards/{what}" for what in ("chosen", "rejected", "accuracies", "margins")} | {
        "logps/chosen",
        "logps/rejected",
    }


def test_the_chosen_answers_cross_entropy_is_that_of_trl(tmp_path: Path) -> None:
    """Its losses `sigmoid` and `sft` together, of one pair: of several it takes one mean over all their tokens."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    ours = scattered(module(preference=PreferenceSettings(beta=0.3, sft_weight=0.7)))
    theirs = trl.DPOTrainer(
        model=scattered(module()).model,
        ref_model=tiny_llava()[0],
        args=trl.DPOConfig(**PLAIN, output_dir=str(tmp_path), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7]),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "images": []}]),
        processing_class=ours.processor,
    )
    theirs.model.train()
    of_one = []
    for pair in pairs(4):
        batch = MLLMCollator(ours.processor).pairs([pair])
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "pair_numbers")}
        expected = theirs.compute_loss(theirs.model, {**inputs, "completion_mask": (batch["labels"] != -100).long()})
        of_one.append(float(ours.training_step(batch, 0)))
        assert of_one[-1] == pytest.approx(float(expected), abs=1e-6)
    together = ours.training_step(MLLMCollator(ours.processor).pairs(pairs(4)), 0)
    assert float(together) == pytest.approx(sum(of_one) / 4, abs=1e-6)  # so that accumulated batches are one batch


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(ValueError, match=r"preference\.sft_weight is .*; expected a number of at least 0"):
        PreferenceSettings(sft_weight=weight)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_reference_is_the_model_without_adapters(architecture: str) -> None:
    """On each architecture: the difference of two models' own losses, the labels' mean times their number."""
    tuned = scattered(module(architecture, PreferenceSettings(loss="hinge", beta=1e-3)))
    batch = MLLMCollator(tuned.processor).pairs(pairs(3))
    before = [p.requires_grad for p in tuned.model.parameters()]
    loss = tuned.training_step(batch, 0)
    assert [p.requires_grad for p in tuned.model.parameters()] == before

    def totals(model: torch.nn.Module, row: int) -> float:
        """Of one answer, from the model's own mean cross-entropy over a single record."""
        record = pairs(3)[row % 3]
        answer = record.rejected if row >= 3 else record.messages[-1]["content"][0]["text"]
        alone = replace(record, messages=(*record.messages[:-1], *assistant_turn(answer)), rejected="")
        inputs = MLLMCollator(tuned.processor).train([alone])
        with torch.no_grad():
            mean = model(**tuned._cast(inputs), use_cache=False).loss
        return -float(mean) * int((inputs["labels"][:, 1:] != -100).sum())

    base = ARCHITECTURES[architecture]()[0]
    ratios = [totals(tuned.model, row) - totals(base, row) for row in range(6)]
    expected = sum(1 - 1e-3 * (ratios[row] - ratios[row + 3]) for row in range(3)) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-6) and abs(ratios[0]) > 1e-3
    with adapters_off(tuned.model) as off, torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "pair_numbers")}
        torch.testing.assert_close(tuned.model(**inputs).logits, base(**inputs).logits, rtol=0, atol=0)
    assert off > 0


def test_a_model_that_reads_text_alone() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _, processor = tiny_llava()
    tokenizer = processor.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    tuned = PreferenceModule.from_objects(LlamaForCausalLM(config), tokenizer, lora=LoraSettings(rank=2))
    batch = MLLMCollator(tokenizer).pairs(pairs(3, text_only=True))
    assert float(tuned.training_step(batch, 0)) == pytest.approx(0.6931472, abs=1e-6)


def test_a_stream_that_ends_with_pairs_is_scored_and_logged(tmp_path: Path) -> None:
    tuned = module()
    data = stream_with_pairs(tuned.processor)
    collated = MLLMCollator(tuned.processor)
    fusion = HarmoniousFusion(safety_data=[collated.train(training_records(4, seed=70))])
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, tuned, data, (fusion, TaskEvaluation(report=False)), logger=logger, log_every_n_steps=1)
    results = RunResults.from_file(tmp_path)
    assert results.tasks == ["first", "safety"] and results.tested == ["first"] and results.steps == [-1, 0, 1]
    assert results.matrix().shape == (2, 1)
    summary = results.summary()
    assert summary["AP"] == results.matrix()[1, 0]
    assert summary["BWT"] == results.matrix()[1, 0] - results.matrix()[0, 0]
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("rewards/margins")]
    assert len(rows) == 6 and float(rows[0]["train/loss"]) == pytest.approx(0.6931472, abs=1e-6)
    assert float(rows[0]["rewards/margins"]) == 0.0 and float(rows[-1]["rewards/accuracies"]) == 1.0


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("step", [4, 5, 7])
def test_a_resume_is_exact(tmp_path: Path, step: int, cached: bool) -> None:
    """From within the first and the second epoch of the pairs; with a cache that was there or is made anew."""

    def settings(name: str) -> PreferenceSettings:
        return PreferenceSettings(
            learning_rate=1e-3, reference_cache=str(tmp_path / f"cache-{name}") if cached else None
        )

    keep = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = module(preference=settings("a"))
    fit(tmp_path, whole, stream_with_pairs(whole.processor), (keep,), enable_checkpointing=True)
    again = module(preference=settings("b"))
    checkpoint = str(tmp_path / "kept" / f"step={step}.ckpt")
    fit(tmp_path, again, stream_with_pairs(again.processor), ckpt_path=checkpoint)
    assert_equal(weights(again), weights(whole))


def gradient_steps(folder: Path, batch_size: int, **options: Any) -> list[dict[str, torch.Tensor]]:
    found: list[dict[str, torch.Tensor]] = []

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            found.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    tuned = scattered(module(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
    trainer = quiet(folder, [Keep()], max_epochs=1, **options)
    collate = MLLMCollator(tuned.processor).pairs
    with pytest.warns(UserWarning, match="the adapters are not empty"):
        trainer.fit(tuned, DataLoader(pairs(6), batch_size=batch_size, collate_fn=collate))
    return found


def test_accumulated_batches_are_one_mean_over_pairs(tmp_path: Path) -> None:
    """Batches of 4 and 2 pairs, whose answers have different numbers of tokens."""
    (one,) = gradient_steps(tmp_path, 6)
    (two,) = gradient_steps(tmp_path, 4, accumulate_grad_batches=2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max() + 1e-9))


def test_pairs_need_their_module_and_replay_needs_pairs(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    plain = MLLMModule.from_objects(model, processor, lora=LoraSettings(rank=2))
    with pytest.raises(
        MisconfigurationException, match=r"'safety' has the objective 'preference'.* use a PreferenceModule"
    ):
        fit(tmp_path, plain, stream_with_pairs(processor))
    with pytest.raises(ValueError, match="is mixed into the preference task 'safety'"):
        fit(tmp_path, module(), stream_with_pairs(processor, replay=Replay(2)))
    with pytest.raises(ValueError, match="no rejected answer; expected a preference pair"):
        data = stream_with_pairs(processor)
        data.tasks[1].train = training_records(4)
        fit(tmp_path, module(), data)


def test_checkpoints_load_with_their_settings(tmp_path: Path) -> None:
    tuned = module(preference=PreferenceSettings(loss="ipo", beta=0.2))
    trainer = fit(tmp_path, tuned, stream_with_pairs(tuned.processor))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    model, processor = tiny_llava()
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "a.ckpt", model=model, processor=processor)
    assert loaded.preference == PreferenceSettings(loss="ipo", beta=0.2)
    assert_equal(weights(loaded), weights(tuned))


@pytest.mark.processes
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    pairs_script.main(tmp_path, 1)
    run_script("pairs_script.py", str(tmp_path), "2", processes=2)
    one, two = (torch.load(tmp_path / f"{devices}.pt") for devices in (1, 2))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-3, atol=1e-4)
    assert one["margins"] == pytest.approx(two["margins"], rel=1e-3, abs=1e-5)
    lines = [(tmp_path / name / "safety.jsonl").read_text().splitlines() for name in ("cache1", "cache2")]
    assert len(lines[0]) == len(lines[1]) == 13


def test_broken_pairs_of_a_stream_are_skipped_and_counted(tmp_path: Path) -> None:
    tuned = module(preference=PreferenceSettings(reference_cache=str(tmp_path / "cache")))
    records = pairs(6)
    records[2] = replace(records[2], rejected="yes " * 200)
    tasks = [Task("safety", records, objective="preference", epochs=1)]
    data = CVITDataModule(tasks, processor=tuned.processor, train_batch_size=3, bad_records="skip", max_length=80)
    with pytest.warns(UserWarning, match="training data of task 'safety': 1 records were skipped"):
        fit(tmp_path, tuned, data)
    assert len((tmp_path / "cache" / "safety.jsonl").read_text().splitlines()) == 1 + 5
