"""The tests that start two processes, again and again: how many of how many runs of each fail.

    python benchmarks/reliability/repeats.py --runs 50 --logs folder
    python benchmarks/reliability/repeats.py --runs 2 --only "not do_what_one_does"    an expression of pytest's -k
    python benchmarks/reliability/repeats.py --runs 50 --record runs.jsonl    as many as are still missing there

They are those that carry the mark `processes`. The output of a run that fails stays in the folder of logs. A record
gets one line after each run, with the commit; a run that was cut off leaves none, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
MARK = "@pytest.mark.processes"


def marked() -> list[str]:
    """Files with tests of two processes, relative to the repository."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARK in file.read_text(encoding="utf-8")]


def outcomes(report: Path) -> list[tuple[str, str, float]]:
    """Name, outcome and seconds of each test in a JUnit report."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found.append((f"{case.get('classname')}::{case.get('name')}", outcome, float(case.get("time") or 0)))
    return found


def recorded(path: Path | None) -> list[dict[str, Any]]:
    """The runs in a record: ``commit``, ``status``, ``seconds`` and ``tests``, name -> outcome and seconds."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def commit() -> str:
    """The repository's commit, with a plus where files differ from it."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def table(runs: list[dict[str, Any]]) -> str:
    """How often each test passed and failed in all runs, as Markdown."""
    counts: dict[str, Counter[str]] = {}
    longest: Counter[str] = Counter()
    for run in runs:
        for name, (outcome, seconds) in run["tests"].items():
            counts.setdefault(name, Counter())[outcome] += 1
            longest[name] = max(longest[name], round(seconds))
    lines = ["| test | passed | failed | longest, s |", "|---|---|---|---|"]
    for name, kinds in counts.items():
        if kinds["passed"] or kinds["failed"]:
            lines.append(f"| {name} | {kinds['passed']} | {kinds['failed']} | {longest[name]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--only", default="", help="an expression that the tests' names have to match (pytest -k)")
    parser.add_argument("--logs", type=Path, help="folder for the output of runs that fail; a new one when left out")
    parser.add_argument("--record", type=Path, help="JSON lines of the runs, which count and are added to")
    arguments = parser.parse_args()
    logs = arguments.logs or Path(tempfile.mkdtemp(prefix="repeats-"))
    logs.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "processes",
        "-p",
        "no:cacheprovider",
        "-k",
        arguments.only,
        *marked(),
    ]
    runs = recorded(arguments.record)
    for number in range(len(runs) + 1, arguments.runs + 1):
        report, begin = logs / "report.xml", time.monotonic()
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            (logs / f"run{number}.log").write_text(done.stdout, encoding="utf-8")
        tests = {name: (outcome, seconds) for name, outcome, seconds in outcomes(report)} if report.exists() else {}
        seconds = round(time.monotonic() - begin)
        runs.append({"commit": commit(), "status": done.returncode, "seconds": seconds, "tests": tests})
        if arguments.record is not None:
            with arguments.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
        print(f"run {number}: status {done.returncode}, {seconds} s", file=sys.stderr, flush=True)
    broken = sum(1 for run in runs if run["status"])
    print(f"{table(runs)}\n\n{broken} of {len(runs)} runs failed" + (f"; their output: {logs}" if broken else ""))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
