"""What is read from a trainer: all of its loggers."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from support.foreign_module import foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data
from support.method_registry import METHODS


def test_every_logger_gets_the_figures(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name) for name in ("one", "two")]
    callbacks = METHODS["post_training"](calibration_data())
    trainer = quiet_trainer(tmp_path, callbacks, max_epochs=1, logger=loggers)
    trainer.fit(foreign_module(OPTIMIZERS["sgd_momentum"], lora=True), token_loader(1, 8))
    written = [Path(logger.log_dir, "metrics.csv").read_text() for logger in loggers]
    assert "retention/" in written[0] and written[0] == written[1]
