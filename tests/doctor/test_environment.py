"""Versions against what is required."""

from __future__ import annotations

import pytest

from hpa_lightning.doctor import versions
from hpa_lightning.doctor.environment import devices

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_versions_are_compared_with_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [wrong for _, _, wrong in versions() if wrong]
    monkeypatch.setattr("hpa_lightning.doctor.environment.requires", lambda name: ["torch>=99", "not-there-at-all>=1"])
    found = {name: (installed, wrong) for name, installed, wrong in versions()}
    assert found["torch"][1] == "expected >=99" and found["not-there-at-all"] == ("missing", "expected >=1")


@pytest.mark.parametrize(("slowdown", "told"), [(9.0, True), (0.6, False)])
def test_a_processor_that_is_slow_in_bfloat16_is_told(
    slowdown: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpa_lightning.float32_products.product_slowdown", lambda: slowdown)
    assert ("slow in bfloat16" in devices()[0]) == told
