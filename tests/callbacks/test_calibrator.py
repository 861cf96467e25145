"""The part that calibrates: what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, fit

from hpa_lightning.callbacks import FocusPartition


def test_missing_safety_data_is_refused_before_training(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException, match="safety_data"):
        fit(foreign_module(OPTIMIZERS["sgd_momentum"], True), [FocusPartition()], tmp_path)
