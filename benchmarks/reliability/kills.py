"""Kill -9 at random moments and at named boundaries: going on must give, bit for bit, what an uncut run gives.

    python benchmarks/reliability/kills.py                      # 20 kills, some minutes
    python benchmarks/reliability/kills.py --kills 200 --log kills.jsonl    # an hour or two; goes on with the log
    python benchmarks/reliability/kills.py --jobs fit:post_training-lora judge
    python benchmarks/reliability/kills.py --table kills.jsonl  # the table of a log

Jobs: `fit:NAME` for every method of tests/support/method_registry.py with LoRA and in full (two tasks on a tiny LLaVA,
scored, a checkpoint every second step), `fuse`, `judge`, `report`, `study` (two cells of the embedded benchmark, the
runner and its cells killed together, or the runner alone, or one cell alone). Each runs in a forked process; it kills
itself at a boundary, or is killed after a random time, and the job is started again until it ends. Compared are
weights, events without times and commands, answers, tables and files, by their content.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kill_jobs import jobs, outcome
from lightning.pytorch import Trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.fuse.output import PartialOutput
from hpa_lightning.results.result_file import ResultWriter

BOUNDARIES: dict[str, list[tuple[Any, str]]] = {
    "fit": [
        (TaskCallback, "_end"),
        (TaskCallback, "starts_writing"),
        (TaskEvaluation, "_evaluate"),
        (TaskEvaluation, "on_tasks_done"),
        (SequentialTuning, "on_task_end"),
        (ResultWriter, "_append"),
        (Trainer, "save_checkpoint"),
        (os, "replace"),
        (os, "fsync"),
    ],
    "fuse": [
        (PartialOutput, "copy_weights"),
        (PartialOutput, "write_part"),
        (PartialOutput, "finish"),
        (os, "replace"),
        (os, "rename"),
        (os, "fsync"),
    ],
    "judge": [(os, "replace"), (os, "rename"), (os, "fsync")],
    "report": [(os, "replace"), (os, "fsync")],
    "study": [(os, "replace"), (os, "fsync")],
}
"""What the process is killed at, before the call or after it."""

LIMIT = 900.0
"""Seconds after which a start counts as one that hangs."""
STARTS = 4
"""After the kill."""


def run(
    job: Callable[[Path], None],
    folder: Path,
    arrange: Callable[[], None] = lambda: None,
    after: float | None = None,
    whom: str = "all",
) -> tuple[int, float, bool]:
    """Run a job in a forked process and kill after so many seconds: the process and its children, it alone or a child.

    Returns:
        Its status (-9: killed, 124: it hung), its seconds, whether something was killed.
    """
    start, killed, hung = time.monotonic(), False, False
    pid = os.fork()
    if pid == 0:
        try:
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.setpgid(0, 0)
            arrange()
            job(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 124 if hung else code, seconds, killed or code == -signal.SIGKILL
        if seconds > LIMIT:
            hung = _kill(pid)
        elif after is not None and seconds > after and not killed:
            killed = _kill(pid) if whom == "all" else _end([pid] if whom == "it" else _children(pid)[:1])
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _end(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _kill(pid: int) -> bool:
    """The process and those that it has started: a machine that loses power spares none."""
    if pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # it starts no more
    for child in _children(pid):
        _kill(child)
    return _end([pid])


def at(owner: Any, name: str, number: int, before: bool) -> None:
    """Let the process kill itself at the ``number``-th call."""
    own, calls = getattr(owner, name), 0

    def killing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and before:
            _kill(os.getpid())
        found = own(*arguments, **options)
        if calls == number:
            _kill(os.getpid())
        return found

    setattr(owner, name, killing)


def one_kill(name: str, job: Callable[[Path], None], place: Path, whole: Whole, draw: random.Random) -> dict[str, Any]:
    """Kill a job, start it until it ends, compare: the line of the log."""
    place.mkdir(parents=True)
    kind = name.split(":")[0]
    after, arrange, whom = None, (lambda: None), "all"
    if draw.random() < 0.5:
        after = draw.uniform(0.0, 0.9 * whole.seconds)
        whom = draw.choice(("all", "all", "it", "a child")) if kind == "study" else "all"
        what = f"after {after:.2f} of {whole.seconds:.2f} s" + (f", {whom} alone" if whom != "all" else "")
    else:
        owner, function = draw.choice(BOUNDARIES[kind])
        call, before = draw.choice((1, 1, 1, 2, 2, 3, 5)), draw.random() < 0.5
        what = f"{'before' if before else 'after'} call {call} of {owner.__name__}.{function}"
        arrange = partial(at, owner, function, call, before)
    status, _, killed = run(job, place, arrange, after, whom)
    starts = 0
    while status not in (0, 124) and starts < STARTS:
        starts += 1
        status, _, _ = run(job, place)
    found = outcome(place)
    differs = sorted(file for file in {*found, *whole.files} if found.get(file) != whole.files.get(file))
    alike = status == 0 and not differs
    return {"job": name, "kill": what, "killed": killed, "alike": alike, "starts": starts, "differs": differs[:5]}


class Whole:
    """The outcome of a job that nothing cut off.

    Raises:
        SystemExit: the job fails by itself.
    """

    def __init__(self, name: str, job: Callable[[Path], None], place: Path) -> None:
        place.mkdir(parents=True)
        status, self.seconds, _ = run(job, place)
        if status:
            raise SystemExit(f"{name} fails without a kill:\n{(place / 'log.txt').read_text()[-3000:]}")
        self.files = outcome(place)


def table(lines: list[dict[str, Any]]) -> int:
    """Print the table of a log and return how many kills did not end alike."""
    print("\n| job | tries | killed | bit for bit alike | needed more than one start |\n|---|---|---|---|---|")
    for kind in ("fit", "fuse", "judge", "report", "study"):
        of_kind = [line for line in lines if line["job"].split(":")[0] == kind]
        killed = [line for line in of_kind if line["killed"]]
        alike, more = sum(line["alike"] for line in killed), sum(line["starts"] > 1 for line in killed)
        print(f"| `{kind}` | {len(of_kind)} | {len(killed)} | {alike} | {more} |")
    fits = {line["job"] for line in lines if line["killed"] and line["job"].startswith("fit:")}
    killed = [line for line in lines if line["killed"]]
    failed = sum(not line["alike"] for line in killed)
    print(f"\n{len(killed)} kills ({len(fits)} methods and tunings of `fit`), {failed} not alike.")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all (default: %(default)s); goal: 200")
    parser.add_argument("--jobs", nargs="+", help="names (default: all, the fits in turn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--log", type=Path, help="one JSON line for each try; a series goes on where its log ends")
    parser.add_argument("--failed", type=Path, help="keep the folders of those that are not alike here")
    parser.add_argument("--table", type=Path, help="print the table of a log and do nothing else")
    options = parser.parse_args()
    if options.table:
        raise SystemExit(bool(table([json.loads(line) for line in options.table.read_text().splitlines()])))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begin = time.monotonic()
    lines = []
    if options.log and options.log.exists():
        lines = [json.loads(line) for line in options.log.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as temporary:
        known = jobs(Path(temporary), run)
        wanted = options.jobs or _in_turn(list(known))
        wholes: dict[str, Whole] = {}
        while sum(line["killed"] for line in lines) < options.kills and time.monotonic() - begin < 60 * options.minutes:
            number = len(lines)
            name = wanted[number % len(wanted)]
            here = Path(temporary, name.replace(":", "_"))
            if name not in wholes:
                wholes[name] = Whole(name, known[name], here / "whole")
            place = here / str(number)
            line = one_kill(name, known[name], place, wholes[name], random.Random(f"{options.seed}/{number}"))
            lines.append(line)
            print(json.dumps(line), flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if not line["alike"]:
                print((place / "log.txt").read_text()[-3000:])
                if options.failed:
                    shutil.copytree(place, options.failed / f"{number}_{name.replace(':', '_')}")
                    shutil.copytree(here / "whole", options.failed / f"{number}_whole", dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
    raise SystemExit(bool(table(lines)))


def _in_turn(names: list[str]) -> list[str]:
    """Fits and the other jobs in turn, so that a short series has some of each."""
    fits, others = ([n for n in names if n.startswith("fit:") == fitted] for fitted in (True, False))
    random.Random(0).shuffle(fits)
    found = []
    for index, name in enumerate(fits):
        found.append(name)
        if index % 2:
            found.append(others[index // 2 % len(others)])
    return found


if __name__ == "__main__":
    main()
