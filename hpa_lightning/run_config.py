"""The configuration of a run, saved beside what the command writes."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from hpa_lightning.files import unused_path, whole_file
from hpa_lightning.loggers import RunCSVLogger
from hpa_lightning.trainer_attributes import resumed_from


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration beside what the command writes.

    ``fit`` writes ``config.yaml`` into the logger's folder. If that holds one already, a resumed run writes
    ``config.resumed.yaml`` (then ``config.resumed_2.yaml``, ...) beside it, and a new run moves it to
    ``config.previous.yaml``.

    Attributes:
        folder: of a command other than `fit`.
    """

    folder: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir)  # the same calls on every process
        if trainer.is_global_zero and not self.already_saved and not (folder / self.config_filename).exists():
            self._save(folder / self.config_filename)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Only now is known whether the run is resumed."""
        resumed = resumed_from(trainer) is not None
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.resumed_at = trainer.global_step if resumed else None
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero or self.already_saved:
            return
        path = folder / self.config_filename
        if resumed:
            path = unused_path(path.with_suffix(f".resumed{path.suffix}"))
        else:
            path.replace(path.with_suffix(f".previous{path.suffix}"))
        self._save(path)

    def _save(self, path: Path) -> None:
        with whole_file(path) as beside:
            self.parser.save(self.config, beside, skip_none=False, overwrite=True, multifile=self.multifile)
        self.already_saved = True
