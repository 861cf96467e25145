from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_folder_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers without a folder of their own write to the current one; small tensors are slower on many threads."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
