"""Checks of arguments: what is let through, and what each says."""

from __future__ import annotations

import math

import pytest
import torch

from hpa_lightning.functional.numerics import checks


@pytest.mark.parametrize(("length", "width", "entries"), [(7, 3, 6), (7, 3, 1), (1, 50, 10), (0, 4, 8), (9, 0, 4)])
def test_blocks_cover_every_line_once_within_the_size(length: int, width: int, entries: int) -> None:
    slices = list(checks.blocks(length, width, entries))
    assert [line for part in slices for line in range(length)[part]] == list(range(length))
    assert all((part.stop - part.start) * width <= entries or part.stop - part.start == 1 for part in slices)


def test_masks_are_boolean_of_the_right_length_on_the_right_device() -> None:
    weight = torch.ones(2, 3)
    checks.check_mask("mask", torch.tensor([True, False, True]), 3, weight)
    for mask in (torch.ones(3), torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool, device="meta")):
        with pytest.raises(ValueError, match=r"mask: expected a boolean tensor of shape \(3,\) on cpu .* got "):
            checks.check_mask("mask", mask, 3, weight)


def test_a_value_is_described_by_dtype_layout_shape_and_place() -> None:
    assert checks.describe(torch.ones(2, 3)) == "float32 tensor of shape (2, 3) on cpu"
    assert checks.describe(torch.ones(2, 3).to_sparse()).startswith("float32 sparse_coo tensor of shape (2, 3)")
    assert "meta (without values)" in checks.describe(torch.ones(1, device="meta"))
    assert checks.describe([1, 2]) == "list [1, 2]"


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, True, "0.5", None])
def test_what_is_no_number_of_the_range_is_refused(value: object) -> None:
    checks.check_number("share", 0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"share: expected a finite number in \[0, 1\]"):
        checks.check_number("share", value, 0.0, 1.0)  # type: ignore[arg-type]


def test_results_that_overflow_are_counted() -> None:
    good = torch.ones(4)
    assert checks.check_result("the sum", good) is good
    with pytest.raises(ValueError, match="the sum: 2 of 3 values do not fit the result, a float16 tensor"):
        checks.check_result("the sum", torch.tensor([1.0, 1e9, -1e9]).half())
    with pytest.raises(ValueError, match="expected finite values, got 1 NaN or infinite of 2"):
        checks.check_finite("weight", torch.tensor([1.0, math.nan]))
