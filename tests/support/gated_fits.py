"""Streams on a model that refuses as long as its weights have not moved too far, with a SafetyGate or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.method_fits import dense
from support.multimodal_fits import method, module, stream, trainer

from hpa_lightning.callbacks import SafetyGate, SequentialTuning, TaskEvaluation
from hpa_lightning.modules import MLLMModule
from hpa_lightning.results.result_file import read_results

REFUSAL, ANSWER = "I cannot help with that.", "Sure, here is how."


def moved(tuned: MLLMModule) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in dense(tuned).values()])


def cautious(lora: bool, limits: list[float], projector: bool = False) -> MLLMModule:
    """A model that refuses harmful input i while its weights are within ``limits[i]`` of where they began.

    With ``projector`` the projector has LoRA, too, outside of the decoder blocks.
    """
    tuned = module(lora)
    if projector:
        outside = tuned.get_submodule("model.model.multi_modal_projector")
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear_1", "linear_2"]), outside)
    start = moved(tuned)

    def generate(batch: dict[str, Any], max_new_tokens: int | None = None) -> list[str]:
        distance = float((moved(tuned) - start).norm())
        return [REFUSAL if distance <= limit else ANSWER for limit in limits[: len(batch["ids"])]]

    tuned.generate = generate  # type: ignore[method-assign]
    return tuned


def callbacks(gate: SafetyGate | None, name: str = "post_training") -> list[L.Callback]:
    extra = [gate] if gate is not None else []
    return [SequentialTuning(), *method(name), *extra, TaskEvaluation(keep_predictions=False, report=False)]


def fit(folder: Path, tuned: MLLMModule, every: list[L.Callback], **options: Any) -> L.Trainer:
    L.seed_everything(3, verbose=False)
    runner = trainer(folder, every)
    runner.fit(tuned, stream(evaluated=True), **options)
    return runner


def gates(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_results(folder / "results.jsonl") if event["event"] == "gate"]


@pytest.fixture(scope="module", params=[True, False], ids=["lora", "full"])
def ungated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, list[float]]:
    """Whether LoRA, and how far the weights are from their start after each task without a gate."""
    distances = []

    class Measure(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            distances.append(float((moved(pl_module) - start).norm()))

    tuned = cautious(request.param, [1e9] * 3)
    start = moved(tuned)
    fit(tmp_path_factory.mktemp("ungated"), tuned, [*callbacks(None), Measure()])
    return request.param, [distances[0], distances[2]]  # the second task takes two epochs
