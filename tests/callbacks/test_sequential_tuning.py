"""The callbacks over a stream of tasks on a real LLaVA architecture: order, merging, the matrix, resume."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from support.method_registry import TUNING_IDS, TUNINGS
from support.multimodal_fits import method, module, stream, trainer
from support.tiny_mllms import training_records
from transformers import LlamaConfig, LlamaForCausalLM

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results
from hpa_lightning.results.run_results import RunResults


class Log(TaskCallback):
    """Notes the boundaries, and what the model looks like at each."""

    shapes_training = False
    start_order = 5
    end_order = 15

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, str]] = []
        self.optimizers: list[int] = []
        self.logits: list[torch.Tensor] = []
        self.probe: dict[str, torch.Tensor] = {}

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        self.seen.append(("start", task.index, task.name))
        self.optimizers.append(id(trainer.optimizers[0]))
        assert not trainer.optimizers[0].state

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        """Runs between fusion and merge."""
        self.seen.append(("end", task.index, task.name))
        assert any(factors.lora_b.any() for _, factors in lora_layers(pl_module))
        with torch.no_grad():
            self.logits.append(pl_module.model(**self.probe, use_cache=False).logits)


def test_boundaries_merge_and_fresh_optimizers(tmp_path: Path) -> None:
    log, tuned = Log(), module()
    log.probe = MLLMCollator(tuned.processor).train(training_records(2, seed=8))
    trainer(tmp_path, [TaskEvaluation(report=False), log, SequentialTuning()]).fit(tuned, stream(evaluated=True))
    expected = [(what, index, name) for index, name in enumerate(("first", "second")) for what in ("start", "end")]
    assert log.seen == expected
    assert len(set(log.optimizers)) == 2
    assert all(not factors.lora_b.any() for _, factors in lora_layers(tuned))
    with torch.no_grad():
        merged = tuned.model(**log.probe, use_cache=False).logits
    torch.testing.assert_close(merged, log.logits[-1], rtol=1e-4, atol=1e-4)


def test_a_task_that_max_steps_cuts_short_stays_open(tmp_path: Path) -> None:
    log = Log()
    tuned = module()
    log.probe = MLLMCollator(tuned.processor).train(training_records(2, seed=8))
    with pytest.warns(UserWarning, match=r"stopped in the middle of task 1 \('second'\)"):
        trainer(tmp_path, [log, SequentialTuning()], max_steps=5).fit(tuned, stream())
    assert log.seen == [("start", 0, "first"), ("end", 0, "first"), ("start", 1, "second")]
    assert any(factors.lora_b.any() for _, factors in lora_layers(tuned))


STEPS = {2: "first_task", 3: "trained_not_ended", 5: "second_task", 6: "epoch_end", 9: "last_trained_not_ended"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[dict[str, torch.Tensor], Path]]:
    """The weights at the end of an uncut run, and the folder of its checkpoints; every run once."""

    @cache
    def run(name: str, lora: bool) -> tuple[dict[str, torch.Tensor], Path]:
        folder, tuned = tmp_path_factory.mktemp("whole"), module(lora)
        save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"enable_checkpointing": True, "max_steps": -1}
        trainer(folder, [SequentialTuning(), *method(name), save], **options).fit(tuned, stream())
        return tuned.state_dict(), folder

    return run


@pytest.mark.parametrize(
    ("name", "lora"),
    [("sequential", True), ("sequential", False), *TUNINGS],
    ids=["sequential-lora", "sequential-full", *TUNING_IDS],
)
@pytest.mark.parametrize("step", STEPS, ids=STEPS.values())
def test_resume_in_the_middle_of_the_sequence(
    whole: Callable[[str, bool], tuple[dict[str, torch.Tensor], Path]], name: str, lora: bool, step: int, tmp_path: Path
) -> None:
    expected, checkpoints = whole(name, lora)
    second = module(lora)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.5)  # everything must come from the checkpoint
    resumed = trainer(tmp_path, [SequentialTuning(), *method(name)])
    resumed.fit(second, stream(), ckpt_path=checkpoints / f"step={step}.ckpt")
    assert resumed.global_step == 9
    for (key, weight), actual in zip(expected.items(), second.state_dict().values(), strict=True):
        assert torch.equal(weight, actual), key


def test_the_time_before_a_cut_counts(
    whole: Callable[[str, bool], tuple[dict[str, torch.Tensor], Path]], tmp_path: Path
) -> None:
    checkpoint = torch.load(whole("sequential", True)[1] / "step=5.ckpt")
    (state,) = [state for name, state in checkpoint["callbacks"].items() if name.startswith("SequentialTuning")]
    assert state["train_seconds"] > 0
    state["train_seconds"] += 1000
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    trainer(tmp_path, [SequentialTuning()]).fit(module(), stream(), ckpt_path=tmp_path / "cut.ckpt")
    times = [one for one in read_results(tmp_path / "results.jsonl") if one["event"] == "time"]
    assert [one["seconds"] > 1000 for one in times if one["phase"] == "train"] == [False, True]


def test_a_resume_tells_what_it_goes_on_with(
    whole: Callable[[str, bool], tuple[dict[str, torch.Tensor], Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    options = {"enable_checkpointing": True, "max_steps": 5}
    for commit, resumed in (("first", None), ("second", tmp_path / "step=5.ckpt")):
        monkeypatch.setattr("hpa_lightning.results.run_results.source_commit", lambda commit=commit: commit)
        callbacks = [SequentialTuning(), TaskEvaluation(initial=False, report=False), *([save] if not resumed else [])]
        fit = trainer(tmp_path, callbacks, **(options if not resumed else {}))
        fit.fit(module(), stream(evaluated=True), ckpt_path=resumed)
    results = RunResults.from_file(tmp_path)
    assert results.commits == ["first", "second"]
    (event,) = results.events("resume")
    assert event["step"] == 1 and torch.__version__.startswith(event["versions"]["torch"])


@pytest.mark.parametrize("name", ["in_training", "post_training"])
def test_saving_changes_nothing(
    whole: Callable[[str, bool], tuple[dict[str, torch.Tensor], Path]], name: str, tmp_path: Path
) -> None:
    tuned = module()
    trainer(tmp_path, [SequentialTuning(), *method(name)]).fit(tuned, stream())
    assert all(torch.equal(weight, tuned.state_dict()[key]) for key, weight in whole(name, True)[0].items())


@pytest.mark.parametrize(("name", "lora"), [("in_training", True), ("in_training", False), ("post_training", True)])
def test_gradient_checkpointing_changes_no_result(name: str, lora: bool, tmp_path: Path) -> None:
    """Blocks run twice in a step; calibration, probe, freezing and projection must not notice."""
    results = []
    for checkpointing in (False, True):
        tuned = module(lora, gradient_checkpointing=checkpointing)
        (_, blocks), calls = find_decoder_blocks(tuned.model), []
        blocks[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        trainer(tmp_path / str(checkpointing), [SequentialTuning(), *method(name)]).fit(tuned, stream())
        results.append((tuned.state_dict(), sum(calls)))
    (plain, once), (checkpointed, twice) = results
    assert once < twice, "nothing was computed again"
    for key, weight in plain.items():
        torch.testing.assert_close(checkpointed[key], weight, rtol=0, atol=1e-6, msg=key)


def test_a_start_of_the_adapters_own_is_told_and_keeps_the_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1)).eval()
    inputs = torch.arange(12)[None]
    expected = model(input_ids=inputs).logits
    holder = L.LightningModule()
    holder.model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    with pytest.warns(UserWarning, match="init_lora_weights is 'pissa': SequentialTuning merges"):
        SequentialTuning().on_task_open(L.Trainer(logger=False), holder, CurrentTask(0, "one", None))
    torch.testing.assert_close(holder.model(input_ids=inputs).logits, expected, rtol=1e-4, atol=1e-4)
