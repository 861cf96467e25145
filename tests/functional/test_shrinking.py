"""Rows shrunk to fewer, and what rounding adds."""

from __future__ import annotations

import pytest
import torch

from hpa_lightning.functional.shrinking import rounding_error


def test_rounding_error_of_nothing_is_nothing() -> None:
    assert rounding_error(torch.ones(2, 3), torch.ones(2, 3)) == pytest.approx(0.0, abs=1e-6)  # of 6
    assert rounding_error(torch.empty(0, 3), torch.empty(0, 3)) == 0.0
