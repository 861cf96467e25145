"""LinearMerging: what is kept after each task, from weights observed independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS
from support.two_fits import Trained, two_fits

from hpa_lightning.callbacks.baselines import LinearMerging
from hpa_lightning.modules.lora import lora_layers


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reference", ["aligned", "before_task"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kept_weights(lora: bool, reference: Any, share: float, tmp_path: Path) -> None:
    module, trained = foreign_module(OPTIMIZERS["adamw_decay"], lora), Trained()
    merging = LinearMerging(share, reference)
    kept = two_fits(module, [trained, merging], tmp_path)
    for task in range(2):
        safe = kept[0] if reference == "aligned" else kept[task]
        for name, weight in kept[task + 1].items():
            tuned = trained.weights[task][name]
            assert not torch.equal(tuned, safe[name])
            if share == 1.0:
                assert torch.equal(weight, safe[name])
            elif share == 0.0 and not lora:
                assert torch.equal(weight, tuned)
            else:
                expected = (1 - share) * tuned.numpy() + share * safe[name].numpy()
                torch.testing.assert_close(weight, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert bool(merging.aligned) == (reference == "aligned")
    assert all(not factors.lora_b.any() for _, factors in lora_layers(module))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        LinearMerging(share=1.2)
    with pytest.raises(ValueError, match="reference"):
        LinearMerging(reference="last")  # type: ignore[arg-type]


def test_a_start_in_the_middle_of_a_stream_is_refused(tmp_path: Path) -> None:
    module, merging = foreign_module(OPTIMIZERS["adamw_decay"], True), LinearMerging()
    merging._finished_tasks = 1
    with pytest.raises(ValueError, match="before the first task"):
        two_fits(module, [merging], tmp_path)
