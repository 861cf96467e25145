"""A forked program is what a started one is: its arguments, surroundings, exit handlers and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.forked_programs import ForkedProcess

SCRIPT = """
import atexit, os, sys, time
atexit.register(lambda: print("exit handler", flush=True))
assert "lightning" in sys.modules and __name__ == "__main__"
print(sys.argv[1:], os.getcwd(), os.environ.get("NAME"), os.environ.get("HOME"), flush=True)
if sys.argv[1] == "error":
    raise RuntimeError("as it has to be")
if sys.argv[1] == "sleep":
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
def test_a_forked_program_is_what_a_started_one_is(tmp_path: Path) -> None:
    script, said = tmp_path / "script.py", tmp_path / "said.txt"
    script.write_text(SCRIPT)

    def start(word: str) -> ForkedProcess:
        with said.open("w") as output:
            files = {"stdout": output, "stderr": subprocess.STDOUT}
            return ForkedProcess([sys.executable, str(script), word], env={"NAME": "a"}, cwd=tmp_path, **files)

    for word, code in (("0", 0), ("3", 3), ("error", 1)):
        assert start(word).wait() == code
        lines = said.read_text().splitlines()
        assert lines[0] == f"['{word}'] {tmp_path} a None" and "exit handler" in lines
    assert "RuntimeError: as it has to be" in lines
    sleeper = start("sleep")
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.1)
    sleeper.terminate()
    assert sleeper.wait() == -15 and sleeper.poll() == -15
    with pytest.raises(ValueError, match="only Python programs"):
        ForkedProcess(["true"])


ENDS = """
import os, signal, subprocess, sys
from support import forked_programs
from support.forked_programs import ForkedProcess

forked_programs.IMPORTED = ()  # they need nothing

started = [ForkedProcess([sys.executable, sys.argv[1], "sleep"], start_new_session=new) for new in (False, True)]
print(*(process.pid for process in started), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
def test_nothing_goes_on_when_the_tests_are_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(600)")
    tests = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])}
    command = [sys.executable, "-c", ENDS, str(script)]
    killed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    identities = killed.stdout.split()
    assert killed.returncode == -9 and len(identities) == 2
    until = time.monotonic() + 60
    while any(running(identity) for identity in identities):
        assert time.monotonic() < until
        time.sleep(0.05)


def running(identity: str) -> bool:
    """A process that has ended and is not waited for is none."""
    try:
        return ") Z " not in Path("/proc", identity, "stat").read_text()
    except FileNotFoundError:
        return False
