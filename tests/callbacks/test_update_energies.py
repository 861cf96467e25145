"""A bound of an update's action in place of the action: cheaper, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, dense, fit

from hpa_lightning import functional as F
from hpa_lightning.callbacks import NullSpaceProjection
from hpa_lightning.callbacks.hessian_memory import Form
from hpa_lightning.callbacks.null_space_projection import Share
from hpa_lightning.callbacks.update_energies import UpdateEnergies


def fitted(folder: Path, lora: bool, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    module = foreign_module(OPTIMIZERS["adamw_decay"], lora)
    projection = NullSpaceProjection(rank=40, **options, **calibration_data())
    fit(module, [projection], folder)
    return dense(module), [one for one in projection.state_dict()["events"] if one["event"] == "protection"]


@pytest.mark.parametrize(("share", "form"), [("output", "sketch"), ("nearest", "exact")])
@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
def test_whole_weights_are_the_same_as_where_all_is_measured(
    budget: float, share: Share, form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"bounded": 0, "all": 0}
    results = {}
    energies_along, told = F.energies_along, UpdateEnergies.told
    for way in measured:

        def counted(rows: Any, directions: Any, *arguments: Any, way: str = way, **options: Any) -> torch.Tensor:
            measured[way] += directions.shape[1]
            return energies_along(rows, directions, *arguments, **options)

        monkeypatch.setattr(F, "energies_along", counted)
        if way == "all":
            monkeypatch.setattr(UpdateEnergies, "told", lambda self, *arguments: told(self, *arguments[:-1], False))
        results[way] = fitted(tmp_path / way, lora=False, share=share, budget=budget, form=form)
    (bounded, events), (whole, expected) = results["bounded"], results["all"]
    assert all(torch.equal(bounded[name], whole[name]) for name in whole)
    assert [one["directions"] for one in events] == [one["directions"] for one in expected]
    if budget == 0.3:  # far from it there is less to measure, 16 directions at a time
        assert measured["bounded"] < 0.8 * measured["all"]


def test_adapters_are_always_measured_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: set[tuple[int, int]] = set()  # of the directions that are measured, and of all that there are
    energies_along = F.energies_along

    def seen(rows: Any, directions: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        whole = directions if directions._base is None else directions._base
        widths.add((directions.shape[1], whole.shape[1]))
        return energies_along(rows, directions, *arguments, **options)

    monkeypatch.setattr(F, "energies_along", seen)
    fitted(tmp_path, lora=True, budget=10.0, form="sketch")
    assert len(widths) >= 2 and all(measured == there for measured, there in widths)
