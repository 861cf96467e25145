"""What every test of the suite goes through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException


@pytest.mark.parametrize(("raised", "seen"), [(SIGTERMException, pytest.exit.Exception), (SystemExit, SystemExit)])
def test_a_time_limit_that_ends_a_fit_ends_the_session_and_fails_no_test(
    raised: Any, seen: Any, pytestconfig: pytest.Config
) -> None:
    conftest: Any = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    item: Any = SimpleNamespace(nodeid="tests/test_x.py::test_fit")
    call = conftest.pytest_runtest_call(item)
    next(call)
    with pytest.raises(seen) as told:
        call.throw(raised())
    assert raised is SystemExit or "SIGTERM (a time limit?) during tests/test_x.py::test_fit" in str(told.value)
