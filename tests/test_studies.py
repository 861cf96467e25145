"""The studies beside the package run; here a small one, twice."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import lightning as L
import pytest

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.modules import NanoModule

STUDY = Path(__file__).parent.parent / "studies" / "one_step.py"


@pytest.fixture(scope="module")
def one_step():
    spec = importlib.util.spec_from_file_location("one_step", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_are_measured_once_and_training_goes_on_from_the_whole_update(one_step, tmp_path: Path) -> None:
    path = tmp_path / "variants.jsonl"
    one_step.SAFETY_SAMPLES = (8, 16)
    weights = []
    for tasks in (["digits"], []):
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[SequentialTuning(), one_step.UpdateVariants(path, 0, tasks)],
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
        )
        model = NanoModule(steps=2)
        stream = NanoDataModule(
            steps=2, train_size=32, calibration_size=8, test_size=4, task_order=["driving", "digits"]
        )
        trainer.fit(model, datamodule=stream)
        weights.append(model.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    found = one_step.measured(path)
    assert {key[:2] for key in found} == {(0, "digits")}
    assert len(found) == 2 + 3 + 4 + 7 + 4 + 6
    assert all(0 <= entry["MASR"] <= 1 and math.isfinite(entry["old"]) for entry in found.values())
    assert one_step.table(path).count("\n") == len(found) + 1
