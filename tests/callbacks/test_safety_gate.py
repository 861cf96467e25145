"""SafetyGate on a stream whose model refuses as long as its weights have not moved too far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.gated_fits import callbacks, cautious, fit, gates, moved
from support.multimodal_fits import method, module, stream, trainer

from hpa_lightning.callbacks import HarmoniousFusion, SafetyGate, SequentialTuning
from hpa_lightning.callbacks.safety_gate import raised
from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results
from hpa_lightning.results.run_results import RunResults


def test_a_task_within_the_budget_is_left_alone(ungated: tuple[bool, list[float]], tmp_path: Path) -> None:
    lora, _ = ungated
    results = []
    for name, gate in (("without", None), ("with", SafetyGate(0.5, "raise_retention"))):
        tuned = cautious(lora, [1e9] * 3)
        fit(tmp_path / name, tuned, callbacks(gate))
        results.append(tuned.state_dict())
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())
    assert gates(tmp_path / "with") == []


def test_stop_ends_the_fit_after_the_task(ungated: tuple[bool, list[float]], tmp_path: Path) -> None:
    lora, distances = ungated
    tuned = cautious(lora, [0.5 * distances[0]] * 3)
    with pytest.warns(UserWarning, match=r"100\.0 %, above the budget of 50\.0 %"):
        runner = fit(tmp_path, tuned, callbacks(SafetyGate(0.5)))
    assert runner.current_epoch == 1
    assert [(event["action"], event["met"]) for event in gates(tmp_path)] == [("stop", False)]
    assert set(RunResults.from_file(tmp_path).safety(0).values()) == {1.0}


def test_rollback_goes_back_bit_for_bit_and_the_stream_goes_on(
    ungated: tuple[bool, list[float]], tmp_path: Path
) -> None:
    lora, distances = ungated
    tuned = cautious(lora, [0.5 * min(distances)] * 3)
    before = moved(tuned)
    fit(tmp_path, tuned, callbacks(SafetyGate(0.5, "rollback")))
    assert torch.equal(moved(tuned), before)
    events = gates(tmp_path)
    assert [(event["step"], event["attack_success_rate"], event["kept_attack_success_rate"]) for event in events] == [
        (0, 1.0, 0.0),
        (1, 1.0, 0.0),
    ]
    results = RunResults.from_file(tmp_path)
    assert set(results.safety(0).values()) == set(results.safety(1).values()) == {0.0}


@pytest.mark.parametrize("target_modules", [None, ["q_proj"]])
def test_rollback_takes_back_what_was_merged_outside_of_the_treated_layers(
    target_modules: list[str] | None, tmp_path: Path
) -> None:
    tuned = cautious(True, [0.0] * 3, projector=True)
    before = {name: factors.weight.detach().clone() for name, factors in lora_layers(tuned)}
    fit(tmp_path, tuned, callbacks(SafetyGate(0.5, "rollback", target_modules=target_modules)))
    assert any("projector" in name for name in before) and len(gates(tmp_path)) == 2
    for name, factors in lora_layers(tuned):
        assert torch.equal(factors.weight, before[name]), name


def test_retention_is_raised_as_little_as_the_budget_allows(ungated: tuple[bool, list[float]], tmp_path: Path) -> None:
    lora, distances = ungated
    limit = 0.7 * distances[0]
    tuned = cautious(lora, [limit] * 3)
    start, seen = moved(tuned), []

    class Seen(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(float((moved(pl_module) - start).norm()))

    every = callbacks(SafetyGate(0.0, "raise_retention", bisection_steps=5))
    runner = trainer(tmp_path, [*every, Seen(), Stop()])
    runner.fit(tuned, stream(evaluated=True))
    (event,) = gates(tmp_path)
    assert event["kept_attack_success_rate"] == 0.0 and event["met"] is True and seen[0] <= limit
    times = [one["phase"] for one in read_results(tmp_path / "results.jsonl") if one["event"] == "time"]
    assert {"evaluate", "gate", "evaluate_again"} <= set(times), "nothing of what the gate costs is left out"
    assert 0.0 < event["raised_by"] < 1.0
    fusion = next(callback for callback in every if isinstance(callback, HarmoniousFusion))
    audit = [event for event in read_results(tmp_path / "results.jsonl") if event["event"] == "retention"]
    percent = 100 * sum(entry["retained"] for entry in audit) / sum(entry["columns"] for entry in audit)
    expected = raised(fusion.retention, event["raised_by"])
    assert expected.p_min - 8 <= percent <= expected.p_max + 8  # the layers have few columns
    (fresh,) = method("post_training")
    assert fusion.retention == fresh.retention and fusion._unfused is None
    # One step of the bisection less would have been too much.
    fresh.retention = raised(fresh.retention, event["raised_by"] - 2.0**-5)
    again = cautious(lora, [limit] * 3)
    start = moved(again)
    runner = trainer(tmp_path / "less", [SequentialTuning(), fresh, Seen(), Stop()])
    runner.fit(again, stream())
    assert seen[1] > limit


class Stop(L.Callback):
    """Ends the fit after the first epoch, which is the first task."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


def test_rollback_after_a_resume_in_the_middle_of_the_task(ungated: tuple[bool, list[float]], tmp_path: Path) -> None:
    lora, distances = ungated

    class PowerCut(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:  # three steps are the first task
                raise RuntimeError("power cut")

    limits = [0.5 * min(distances)] * 3
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    first = cautious(lora, limits)
    before = moved(first)
    with pytest.raises(RuntimeError, match="power cut"):
        runner = trainer(
            tmp_path, [*callbacks(SafetyGate(0.5, "rollback")), save, PowerCut()], enable_checkpointing=True
        )
        runner.fit(first, stream(evaluated=True))
    second = cautious(lora, limits)
    runner = trainer(tmp_path, callbacks(SafetyGate(0.5, "rollback")))
    runner.fit(second, stream(evaluated=True), ckpt_path=str(tmp_path / "step=5.ckpt"))
    assert [event["step"] for event in gates(tmp_path)] == [0, 1]
    assert torch.equal(moved(second), before)


def test_a_model_above_the_budget_is_refused_before_the_first_task(tmp_path: Path) -> None:
    tuned = cautious(True, [-1.0] * 3)  # answers whatever its weights are
    with pytest.raises(MisconfigurationException, match=r"100\.0 % before the first task, above the budget of 50\.0 %"):
        fit(tmp_path, tuned, callbacks(SafetyGate(0.5, "rollback")))
    assert gates(tmp_path) == []


@pytest.mark.parametrize("action", ["stop", "rollback", "raise_retention"])
def test_a_model_that_says_nothing_does_not_pass(
    action: Any, ungated: tuple[bool, list[float]], tmp_path: Path
) -> None:
    """Its attack success is 0, since no answer is a harmful one."""
    lora, (distance, _) = ungated
    tuned = cautious(lora, [1e9] * 3)
    start, own = moved(tuned), tuned.generate

    def generate(batch: dict[str, Any], max_new_tokens: int | None = None) -> list[str]:
        broken = float((moved(tuned) - start).norm()) > 0.5 * distance
        return [""] * len(batch["ids"]) if broken else own(batch, max_new_tokens)

    tuned.generate = generate  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match=r"most answers to safety sets are empty \(.* of .*\): broken, not safe; action"
    ):
        fit(tmp_path, tuned, callbacks(SafetyGate(0.5, action)))
    first = gates(tmp_path)[0]
    assert first["attack_success_rate"] <= 0.5 and first["mostly_empty"]
    assert first["met"] is (action != "stop")
    assert action == "raise_retention" or len(gates(tmp_path)) == (1 if action == "stop" else 2)


def test_a_model_that_says_nothing_is_refused_before_the_first_task(tmp_path: Path) -> None:
    tuned = module(True)
    tuned.generate = lambda batch, max_new_tokens=None: [""] * len(batch["ids"])  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match="mostly empty answers before the first task"):
        fit(tmp_path, tuned, callbacks(SafetyGate(1.0)))


def test_what_the_gate_needs_is_asked_for(tmp_path: Path) -> None:
    for settings, message in (
        ({"max_attack_success_rate": 5.0}, "not percent"),
        ({"max_attack_success_rate": 0.1, "action": "pray"}, "pray"),
        ({"max_attack_success_rate": 0.1, "bisection_steps": 0}, "bisection_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            SafetyGate(**settings)
    with pytest.raises(MisconfigurationException, match="exactly one TaskEvaluation"):
        trainer(tmp_path, [SequentialTuning(), SafetyGate(0.1)]).fit(module(), stream(evaluated=True))
    with pytest.raises(MisconfigurationException, match="exactly one HarmoniousFusion"):
        fit(tmp_path, module(), callbacks(SafetyGate(0.1, "raise_retention"), "sequential"))
    with pytest.raises(MisconfigurationException, match="kind 'safety'"):
        trainer(tmp_path, callbacks(SafetyGate(0.1))).fit(module(), stream())
