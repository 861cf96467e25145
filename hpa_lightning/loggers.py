"""Loggers that lose nothing: a CSV logger that keeps the rows of a run that continues, and where loggers write."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from hpa_lightning.files import whole_file


class RunCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger``, which deletes ``metrics.csv`` of an earlier run, without that.

    A resumed run keeps the rows from before its checkpoint. Any other run that finds a ``metrics.csv`` moves it to
    ``metrics.previous.csv``. The command line takes it instead of a ``CSVLogger``.

    Attributes:
        resumed_at: the optimizer steps that the checkpoint had behind it, to be set before the first row is logged;
            ``None`` for a run that starts.
    """

    resumed_at: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(self)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    """Decides what becomes of earlier rows when the first new one comes: only then is a resume known."""

    def __init__(self, logger: RunCSVLogger) -> None:
        self._logger = logger
        self._started = False
        super().__init__(logger.log_dir)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if not self._started:
            self._started = True
            self._take_over()
        super().log_metrics(metrics_dict, step)

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def _take_over(self) -> None:
        path = self.metrics_file_path
        if not self._fs.isfile(path):
            return
        if self._logger.resumed_at is None:
            self._fs.mv(path, path.removesuffix(".csv") + ".previous.csv")
            return
        with self._fs.open(path, "r", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) < self._logger.resumed_at]
            self.metrics_keys = list(reader.fieldnames or [])
        self._replace(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's own writes over the file in place, where a kill or a full disk leaves a part of the rows."""
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            rows = list(csv.DictReader(file))
        self._replace(rows)

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Replace the file by one with these rows, under all keys, in one step."""
        if isinstance(self._fs, LocalFileSystem):
            with whole_file(self.metrics_file_path) as beside:
                self._write(str(beside), rows)
        else:
            partial = f"{self.metrics_file_path}.partial"
            self._write(partial, rows)
            self._fs.mv(partial, self.metrics_file_path)

    def _write(self, path: str, rows: list[dict[str, str]]) -> None:
        with self._fs.open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def log_folder(trainer: L.Trainer) -> Path:
    """The logger's folder without asking the other processes, which do not run yet."""
    for logger in trainer.loggers:
        folder = logger.log_dir or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)


def appending_logger(logger: Logger) -> Logger:
    """A ``CSVLogger`` that keeps earlier rows, for one that deletes them."""
    if type(logger) is not CSVLogger:
        return logger
    return RunCSVLogger(logger.save_dir, logger.name, logger._version, logger._prefix, logger._flush_logs_every_n_steps)


def moved_logger(logger: Logger, folder: Path) -> Logger:
    """A logger of files, writing into another folder; loggers that send their records away stay as they are."""
    if isinstance(logger, CSVLogger):
        return CSVLogger(folder, "", "", logger._prefix, logger._flush_logs_every_n_steps)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardLogger(folder, "", "", prefix=logger._prefix)
    return logger
