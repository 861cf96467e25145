from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("support")

from support.low_precision import WAYS, LowPrecision  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folder_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers without a folder of their own write to the current one; small tensors are slower on many threads."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def low_precision(request: pytest.FixtureRequest) -> LowPrecision:
    """A context in which float32 matrix products are rounded to bfloat16, where the processor can."""
    return request.param
