"""A pair of checkpoints, before and after tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fused_checkpoints import write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))
