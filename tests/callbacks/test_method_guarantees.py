"""The callbacks on somebody's own Trainer, LightningModule and loader: resume and repeated fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.foreign_module import token_loader
from support.method_fits import calibration_data
from support.method_guarantees import (
    STEPS,
    assert_accumulated_batches_are_one_larger_batch,
    assert_half_precision_does_nearly_the_same,
    assert_resume_equals_an_uninterrupted_run,
)
from support.method_registry import METHODS, TUNING_IDS, TUNINGS
from support.resumed_fits import build, trainer

from hpa_lightning.modules.lora import lora_layers
from hpa_lightning.results.result_file import read_results


@pytest.mark.parametrize(("method", "lora"), TUNINGS, ids=TUNING_IDS)
@pytest.mark.parametrize("step", STEPS, ids=STEPS.values())
def test_resume_equals_an_uninterrupted_run(method: str, lora: bool, step: int, fits: Path, tmp_path: Path) -> None:
    assert_resume_equals_an_uninterrupted_run(method, lora, step, fits, tmp_path)


@pytest.mark.parametrize(("method", "lora"), TUNINGS, ids=TUNING_IDS)
def test_accumulated_batches_are_one_larger_batch(method: str, lora: bool, fits: Path, tmp_path: Path) -> None:
    assert_accumulated_batches_are_one_larger_batch(method, lora, fits, tmp_path)


@pytest.mark.parametrize(("method", "lora"), TUNINGS, ids=TUNING_IDS)
def test_half_precision_does_nearly_the_same(method: str, lora: bool, fits: Path, tmp_path: Path) -> None:
    assert_half_precision_does_nearly_the_same(method, lora, fits, tmp_path)


def test_each_of_several_fits_is_a_task(tmp_path: Path) -> None:
    """One trainer, several fits: users raise max_epochs themselves; every fit gets its own partition and fusion."""
    module = build(True)
    (fusion,) = METHODS["post_training"](calibration_data())
    runner = trainer(tmp_path, [fusion], max_epochs=1, enable_checkpointing=False)
    bases = []
    for number in range(2):
        runner.fit_loop.max_epochs = number + 1
        runner.fit(module, token_loader(number, 20))
        bases.append(torch.cat([factors.weight.detach().flatten() for _, factors in lora_layers(module)]))
        assert all(not factors.lora_b.any() for _, factors in lora_layers(module))
    assert not torch.equal(bases[0], bases[1])
    steps = {event["step"] for event in read_results(tmp_path / "results.jsonl") if event["event"] == "retention"}
    assert steps == {0, 1}
