"""Names of strategies: Lightning's, classes, and those that nobody knows."""

from __future__ import annotations

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

from hpa_lightning.doctor.support import strategy_class


def test_a_strategy_is_known_by_the_trainer_s_name_and_by_its_class() -> None:
    names = ["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp", "lightning.pytorch.strategies.DeepSpeedStrategy"]
    expected = [SingleDeviceStrategy, DDPStrategy, DDPStrategy, FSDPStrategy, DeepSpeedStrategy]
    assert [strategy_class(name) for name in names] == expected


@pytest.mark.parametrize(("name", "near"), [("dpp", "ddp"), ("DDPStrategi", "DDPStrategy"), ("zzz", None)])
def test_an_unknown_one_is_told_with_the_nearest(name: str, near: str | None) -> None:
    with pytest.raises(ValueError, match=f"no strategy '{name}'" + (f"; did you mean '{near}'" if near else "$")):
        strategy_class(name)
