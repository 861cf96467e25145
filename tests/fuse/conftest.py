"""A pair of checkpoints, before and after tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fused_checkpoints import write_pair
from support.tiny_mllms import tiny_llava


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    model, processor = tiny_llava(2)
    model.save_pretrained(path, max_shard_size="60KB")
    processor.save_pretrained(path)
    return path
