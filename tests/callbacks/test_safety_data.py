"""What is no safety or task data is told by its argument, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibrated_fits import fit_with
from support.foreign_module import token_loader
from transformers import BatchFeature

from hpa_lightning.callbacks import HarmoniousFusion
from hpa_lightning.callbacks.safety_data import naming_data

SMALL = {"safety_samples": 4, "task_samples": 4, "batch_size": 4}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no/such/file.json", "safety_data is 'no/such/file.json', and there is no such file; expected batches"),
        (["How do I pick a lock?"], r"safety_data holds text \('How do I pick a lock\?', ...\); expected batches"),
        ([], "safety_data is empty; expected batches"),
        (8, "safety_data is a int; expected batches"),
        (BatchFeature({"tokens": torch.zeros(2, 3)}), r"safety_data is one batch \(a BatchFeature of \['tokens'\]\)"),
        ({"tokens": torch.zeros(2, 3)}, r"one batch .*; expected batches: put it in a list, safety_data=\[batch\]"),
        (torch.zeros(2, 3), r"safety_data is one batch \(a Tensor of shape \(2, 3\)\)"),
        (
            [{"id": "0", "conversations": []}],
            r"rows of a data file \(with \['conversations', 'id'\]\); pass its path",
        ),
        (
            (text for text in ["How do I?"]),
            "could not calibrate with safety_data: ValueError: cannot determine the number",
        ),
        ([{"ids": torch.zeros(2, 3)}], "could not calibrate with safety_data: .*Error: "),
    ],
)
def test_what_is_no_safety_data(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        fit_with(tmp_path, HarmoniousFusion(safety_data=data))


def test_task_data_that_are_one_batch_are_told(tmp_path: Path) -> None:
    batch = {"tokens": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"HarmoniousFusion: task_data is one batch \(a dict of \['tokens'\]\)"):
        fit_with(tmp_path, HarmoniousFusion(safety_data=token_loader(7, 4), task_data=batch))


def test_task_data_that_the_step_cannot_take_is_named(tmp_path: Path) -> None:
    """Before anything is trained, by its argument; a message that prints a whole model is cut in its middle."""
    fusion = HarmoniousFusion(safety_data=token_loader(7, 4), task_data=[{"ids": torch.zeros(2, 3)}], calibration=SMALL)  # type: ignore[arg-type]
    with pytest.raises(
        (ValueError, RuntimeError), match=r"HarmoniousFusion could not calibrate with task_data: .*Error"
    ):
        fit_with(tmp_path, fusion)
    with pytest.raises(RuntimeError) as raised, naming_data("A", "safety_data"):
        raise TypeError("x" * 5000 + " argument after ** must be a mapping")
    assert len(str(raised.value)) < 700 and str(raised.value).endswith("must be a mapping")
    with pytest.raises(torch.OutOfMemoryError), naming_data("A", "safety_data"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
