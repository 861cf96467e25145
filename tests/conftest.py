from __future__ import annotations

from collections.abc import Generator
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Lightning makes an exception of SIGTERM in a fit: the test would count as failed, the next one would begin."""
    try:
        return (yield)
    except SystemExit as error:
        if type(error).__name__ != "SIGTERMException":  # of Lightning, which tests of tensors alone do not import
            raise
        pytest.exit(f"SIGTERM (a time limit?) during {item.nodeid}", returncode=143)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def low_precision(request: pytest.FixtureRequest) -> LowPrecision:
    """A context in which float32 matrix products are rounded to bfloat16, where the processor can."""
    return request.param
