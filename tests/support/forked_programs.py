"""Programs that begin with torch, Lightning and transformers imported: importing them takes longer than most tests.

A process that has imported them and done nothing else (one for each process of pytest, started when it is first needed)
forks for each program. What it forks runs the program as its main module, with the arguments, environment, folder and
files that were asked for, and ends as Python ends: with its exit handlers, its threads and its exit code. At the end it
leaves what was imported alone (two seconds for each process); extensions may say there that this is a leak.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

IMPORTED = (
    "lightning",
    "peft",
    "transformers.generation",
    "hpa_lightning.callbacks.baselines",
    "hpa_lightning.cli.tuning",
    "hpa_lightning.data.nano",
    "hpa_lightning.lightning_commands",
    "hpa_lightning.modules",
    "support.foreign_module",
    "support.method_registry",
    "support.multimodal_fits",
)
"""Before the first program begins."""
_LARGEST = 1 << 20  # bytes of a request


class ForkedProcess:
    """The part of :class:`subprocess.Popen` that the tests use, for Python programs.

    Args:
        command: ``sys.executable``, then a script or ``-m`` and a module, then the program's arguments.
        env: its whole environment; ``None``: this process's.
        cwd: its folder; ``None``: this process's.
        stdin: ``subprocess.DEVNULL``; there is nothing to read.
        stdout: an open file, ``subprocess.DEVNULL``, or ``None``: where this process writes. Pipes are not supported.
        stderr: likewise, or ``subprocess.STDOUT``.
        start_new_session: whether it leads a session of its own.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [os.fspath(word) for word in command]
        if self.args[0] != sys.executable or stdin != subprocess.DEVNULL:
            raise ValueError(f"only Python programs without an input can be forked; got {self.args}, stdin {stdin}")
        self.returncode: int | None = None
        request = {
            "arguments": self.args[1:],
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd) if cwd is not None else os.getcwd(),
            "session": start_new_session,
        }
        with open(os.devnull, "r+b") as nothing:
            files = [nothing.fileno()]
            for own, wanted in ((1, stdout), (2, stderr)):
                known = {None: own, subprocess.DEVNULL: nothing.fileno(), subprocess.STDOUT: files[-1]}
                files.append(known[wanted] if wanted is None or isinstance(wanted, int) else wanted.fileno())
            self.pid: int = _ask(request, files)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; ``None`` while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


start_program: Any = ForkedProcess if sys.platform == "linux" else subprocess.Popen
"""Elsewhere than on Linux a process with torch is not safe to fork."""


def fork_programs_of(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module that starts Python programs with ``subprocess.Popen`` fork them."""
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start_program}))


#: Which process has started it, the connection to it, its identity.
_server: tuple[int, socket.socket, int] | None = None


def _ask(request: dict[str, Any], files: Sequence[int] = ()) -> Any:
    """Ask the process that forks, which is started first if there is none."""
    global _server
    if _server is None or _server[0] != os.getpid():
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), *sys.path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-m", "support.forked_programs", str(other.fileno()), *IMPORTED]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        started = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()], **options)
        other.close()
        _server = (os.getpid(), own, started.pid)
    connection = _server[1]
    content = json.dumps(request).encode()
    if files:
        socket.send_fds(connection, [content], list(files))
    else:
        connection.send(content)
    answer = connection.recv(_LARGEST)
    if not answer:
        raise RuntimeError("the process that forks programs has ended")
    return json.loads(answer)


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for every request; returns in the forked processes alone, with what each has to run."""
    alive: dict[int, bool] = {}  # identity -> whether it leads a session
    while True:
        content, files, _, _ = socket.recv_fds(connection, _LARGEST, 3)
        if not content:  # who asked has ended, perhaps by a signal: nothing may go on alone
            for pid, leads in alive.items():
                for kill in (os.killpg, os.kill) if leads else (os.kill,):  # it may not lead one yet
                    with suppress(ProcessLookupError):
                        kill(pid, signal.SIGKILL)
            os._exit(0)
        request: dict[str, Any] = json.loads(content)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            if pid:
                del alive[pid]
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
            for file in files:
                os.close(file)
            if answer == 0:
                return request
            alive[answer] = request["session"]
        connection.send(json.dumps(answer).encode())


def _run(request: dict[str, Any]) -> None:
    """Be the program."""
    import faulthandler

    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    arguments = request["arguments"]
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        __import__(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy what they share
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
