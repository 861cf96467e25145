"""What every test of the suite goes through."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException


def loaded(config: pytest.Config) -> Any:
    return config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))


@pytest.mark.parametrize(("raised", "seen"), [(SIGTERMException, pytest.exit.Exception), (SystemExit, SystemExit)])
def test_a_time_limit_that_ends_a_fit_ends_the_session_and_fails_no_test(
    raised: Any, seen: Any, pytestconfig: pytest.Config
) -> None:
    conftest = loaded(pytestconfig)
    item: Any = SimpleNamespace(nodeid="tests/test_x.py::test_fit")
    call = conftest.pytest_runtest_call(item)
    next(call)
    with pytest.raises(seen) as told:
        call.throw(raised())
    assert raised is SystemExit or "SIGTERM (a time limit?) during tests/test_x.py::test_fit" in str(told.value)


def test_files_that_take_long_are_begun_first(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduling = pytest.importorskip("xdist.scheduler").LoadFileScheduling
    conftest, given = loaded(pytestconfig), []
    monkeypatch.setattr(scheduling, "_assign_work_unit", lambda self, node: given.append(self.workqueue.popitem(False)))
    monkeypatch.setattr(scheduling, "__init__", lambda self, config, log: None)
    config: Any = SimpleNamespace(getoption=lambda name: "loadfile")
    scheduler = conftest.pytest_xdist_make_scheduler(config, None)
    scheduler.workqueue = OrderedDict.fromkeys(["tests/a.py", conftest.LONG[1], "tests/b.py", conftest.LONG[0]])
    while scheduler.workqueue:
        scheduler._assign_work_unit(None)
    assert [file for file, _ in given] == [*conftest.LONG[:2], "tests/a.py", "tests/b.py"]
    root = Path(__file__).parents[1]
    assert all((root / file).is_file() for file in conftest.LONG)
    other: Any = SimpleNamespace(getoption=lambda name: "load")
    assert conftest.pytest_xdist_make_scheduler(other, None) is None
