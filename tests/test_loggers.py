"""The run's CSV file: rows with new columns join the earlier ones, or leave them as they were."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from hpa_lightning.loggers import RunCSVLogger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_with_new_columns_join_those_of_the_earlier_run(tmp_path: Path) -> None:
    first = RunCSVLogger(tmp_path, "", "")
    for step in range(3):
        first.log_metrics({"loss": torch.tensor(1.0 + step)}, step)
    first.save()
    again = RunCSVLogger(tmp_path, "", "")
    again.resumed_at = 2
    again.log_metrics({"loss": 9.0, "new": 1.0}, 2)
    again.save()
    found = [(row["step"], row["loss"], row["new"]) for row in rows(tmp_path / "metrics.csv")]
    assert found == [("0", "1.0", ""), ("1", "2.0", ""), ("2", "9.0", "1.0")]


def test_a_new_column_that_cannot_be_written_leaves_the_rows_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = RunCSVLogger(tmp_path, "", "")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    logger.log_metrics({"loss": 2.0, "new": 1.0}, 1)

    def full(self: Any, rows: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", full)
        with pytest.raises(OSError, match=r"No space left.*metrics\.csv"):
            logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "metrics" in path.name] == ["metrics.csv"]
