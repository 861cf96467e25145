"""Settings of a trainer that a stream cannot be trained with."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hpa_lightning.data.fit_checks import check_fit


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return L.Trainer(**{**quiet, "reload_dataloaders_every_n_epochs": 1, **settings})


def test_trainer_settings_are_checked_early() -> None:
    fit = trainer()
    fit.fit_loop.max_epochs = 1000  # what Lightning makes of None
    with pytest.warns(UserWarning, match="no callback handles their boundaries"):
        check_fit(fit, 3, 4)
    assert fit.max_epochs == 4
    check_fit(fit, 1, 4)
    with pytest.raises(MisconfigurationException, match=r"max_epochs=2\), but the 3 tasks take 4 epochs"):
        check_fit(trainer(max_epochs=2), 3, 4)
    with pytest.raises(MisconfigurationException, match="reload_dataloaders_every_n_epochs=1"):
        check_fit(trainer(reload_dataloaders_every_n_epochs=0), 3, 4)
    check_fit(trainer(fast_dev_run=True), 3, 4)
    with pytest.raises(MisconfigurationException, match=r"overfit_batches=1\).*limit_train_batches"):
        check_fit(trainer(overfit_batches=1), 3, 4)
