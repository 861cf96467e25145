"""The functional core returns what it says or raises ValueError, whatever tensors it is given."""

from __future__ import annotations

import pytest
import torch
from support import fuzz_functional

from hpa_lightning import functional as hpa

INPUTS = 60
"""Of every function; benchmarks/reliability/inputs.py tries as many as are asked for."""


@pytest.mark.parametrize("name", fuzz_functional.CASES)
def test_any_tensors(name: str) -> None:
    found = fuzz_functional.run(name, INPUTS)
    assert not found, f"{len(found)} faults, the first: {found[0][1]} by {found[0][0]}"


def test_every_public_function_is_tried() -> None:
    other = {"HessianAccumulator", "LoraTensors", "Units", "UpdateProjection", "project_lora_updates_"}
    # Numbers alone, or tried within others.
    other |= {"retention_percent", "RetentionSettings", "LoraUpdate", "focus_partition", "update_focus"}
    other |= {"columns_by_rule", "check_merging"}
    other |= {
        "half_precision_basis",
        "half_precision_copy",
        "sketched_regression_map",
    }  # of bases and sketches, not of any tensors
    # Of spectra, which tests/functional/test_bounded_update.py draws.
    other |= {
        "InputSpectrum",
        "input_spectrum",
        "leave_directions",
        "directions_that_tell",
        "left_factors",
        "nearest_in_budget",
    }
    other |= {"answer_log_probabilities", "preference_loss"}  # losses, which build a graph; compared with TRL's
    other |= {"MajoritySign", "MergingConvention", "MergingMethod", "Rescale"}
    assert set(hpa.__all__) - other <= set(fuzz_functional.CASES)


def test_the_focus_of_rows_leaves_a_float64_update_as_it_was() -> None:
    delta = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    hpa.row_focus(delta, torch.ones(2))
    assert delta.tolist() == [[1.0, -2.0]]


def test_what_half_precision_cannot_hold_is_an_error_and_changes_nothing() -> None:
    old, none = torch.ones(2, 2, dtype=torch.float16), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"fused weight: 2 of 4 values do not fit .*float16"):
        hpa.fuse(old, torch.tensor([[1.0, 1e6], [1e6, 1.0]]), none, orthogonal=False)
    with pytest.raises(ValueError, match=r"fused weight: .*float16"):
        hpa.lora_fuse_(old, torch.tensor([[1.0, 0.0]]), torch.tensor([[1e6], [0.0]]), 1.0, none, orthogonal=False)
    assert old.tolist() == [[1.0, 1.0], [1.0, 1.0]]
