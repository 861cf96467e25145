"""OrthogonalLoRA: the penalty on norms, and adapters that it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.penalised_fits import build, fit, in_the_loss, penalties

from hpa_lightning.callbacks.baselines import OrthogonalLoRA
from hpa_lightning.modules.lora import lora_layers


def test_norms_are_paid_for_in_the_first_task_too(tmp_path: Path) -> None:
    ends = {}
    for how in ("callback", "loss", "neither"):
        module, penalty = build(), penalties()["olora_norms"]
        if how == "loss":
            in_the_loss(module, penalty)
        fit(module, [penalty] if how == "callback" else [], tmp_path)
        ends[how] = torch.cat(
            [torch.cat([f.lora_a.flatten(), f.lora_b.flatten()]) for _, f in lora_layers(module)]
        ).detach()
    assert float((ends["callback"] - ends["neither"]).abs().max()) > 1e-3
    torch.testing.assert_close(ends["callback"], ends["loss"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="norm_weight is -1"):
        OrthogonalLoRA(norm_weight=-1)


def test_adapters_that_go_on_are_refused(tmp_path: Path) -> None:
    penalty, module = OrthogonalLoRA(), build()
    fit(module, [penalty], tmp_path)
    with pytest.raises(MisconfigurationException, match=r"12 adapters \(model.layers.0.q_proj, ...\) continue"):
        fit(module, [penalty], tmp_path)
