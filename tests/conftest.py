from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("support")

from support.low_precision import WAYS, LowPrecision  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folder_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers without a folder of their own write to the current one; small tensors are slower on many threads.

    Lightning keeps its messages from pytest when it is imported before the collection, which a folder with a
    conftest.py on the command line brings about.
    """
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Lightning makes an exception of SIGTERM in a fit: the test would count as failed, the next one would begin."""
    try:
        return (yield)
    except SystemExit as error:
        if type(error).__name__ != "SIGTERMException":  # of Lightning, which tests of tensors alone do not import
            raise
        pytest.exit(f"SIGTERM (a time limit?) during {item.nodeid}", returncode=143)


LONG = (
    "tests/callbacks/test_processes.py",
    "tests/test_kills.py",
    "tests/test_growth.py",
    "tests/test_studies.py",
    "tests/test_cost.py",
    "tests/test_packaging.py",
    "tests/data/nano/test_shipped_model.py",
    "tests/study/test_runner.py",
)
"""Few tests that take long: `--dist loadfile` begins with the files of many tests, and one process would end alone."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` the files of `LONG` come first."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LongFirst(LoadFileScheduling):  # type: ignore[misc]
        def _assign_work_unit(self, node: Any) -> None:
            for file in reversed(LONG):
                if file in self.workqueue:
                    self.workqueue.move_to_end(file, last=False)
            super()._assign_work_unit(node)

    return LongFirst(config, log)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def low_precision(request: pytest.FixtureRequest) -> LowPrecision:
    """A context in which float32 matrix products are rounded to bfloat16, where the processor can."""
    return request.param
