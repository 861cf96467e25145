"""Folders of two models that were tuned from one, and of that one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.merged_checkpoints import models
from support.tiny_mllms import tiny_llava


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(lambda: tiny_llava(2), tmp_path_factory.mktemp("llava"))
