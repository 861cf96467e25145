"""Fixtures that several files of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gated_fits import ungated  # noqa: F401


@pytest.fixture(scope="session")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for fits that several tests compare with, each run once."""
    return tmp_path_factory.mktemp("fits")
