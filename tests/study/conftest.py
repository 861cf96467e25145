"""A stand-in for `hpa-lightning fit`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.stand_in_fits import SCRIPT

from hpa_lightning.study import runner


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(runner, "_command", lambda config, checkpoint: [sys.executable, str(script), str(config)])
