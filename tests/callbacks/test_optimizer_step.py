"""Callbacks that act after every optimizer step leave no hook behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, fit, settings

from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, OrthogonalProjection


def test_hooks_are_removed_after_a_crash(tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise RuntimeError("crash")

    module = foreign_module(OPTIMIZERS["sgd_momentum"], True)
    freezing, projection = MaskedFreezing(), OrthogonalProjection()
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, [FocusPartition(probe_steps=1, **settings()), freezing, projection, Crash()], tmp_path)
    assert not freezing._handles and not projection._handles
    for inner in module.modules():
        assert not inner._forward_pre_hooks and not inner._forward_hooks and "forward" not in inner.__dict__
