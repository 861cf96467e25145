"""How much memory and time a stream takes before its first batch, against the number of records.

    python benchmarks/reliability/records.py                    10^4, 10^5 and 10^6 records; some minutes, 1 GB of disk
    python benchmarks/reliability/records.py --small            a few thousand records, in seconds
    python benchmarks/reliability/records.py --records 3000000 --ways lines

Each line is a process of its own. Its memory is the peak of its resident memory above what it had when all modules were
imported and the tokenizer was made, over the whole of `setup`, the first batch and 200 more. Seconds are those of the
processor, except the time that was waited, which other programs on the machine lengthen. Records are LLaVA's
conversations without images, about 500 bytes each; the machine's cache holds the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

AHEAD = 10_000
WAYS = {
    "lines": "JSON lines",
    "ahead": f"JSON lines, `check_ahead: {AHEAD}`",
    "list": "one JSON list",
    "memory": "JSON lines read into memory (`read_records`)",
}
BATCHES = 200


def write(path: Path, count: int) -> None:
    """Write a JSON-lines or a JSON file of ``count`` records: a thousand conversations of random words, over again."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmno", k=draw.randint(2, 9))) for _ in range(5000)]
    turns = [("human", 25), ("gpt", 12), ("human", 12), ("gpt", 15)]
    said = [
        json.dumps([{"from": who, "value": " ".join(draw.choices(words, k=length))} for who, length in turns])
        for _ in range(1000)
    ]
    start, between, end = ("[", ",\n", "]\n") if path.suffix == ".json" else ("", "\n", "\n")
    with path.open("w") as file:
        file.write(start)
        for index in range(count):
            row = f'{{"id": "{index:09d}", "conversations": {said[index % len(said)]}}}'
            file.write((between if index else "") + row)
        file.write(end)


def resident(what: str) -> float:
    """Megabytes that this process has resident (``VmRSS``) or had at most (``VmHWM``)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1000


def measure(path: Path, way: str) -> dict[str, float]:
    """What one way of reading a file takes; in a process of its own."""
    sys.path.insert(0, str(ROOT / "tests"))
    warnings.simplefilter("ignore")
    from support.tiny_mllms import tiny_tokenizer
    from transformers import PreTrainedTokenizerFast

    from hpa_lightning.data import CVITDataModule, Record, Task, read_records
    from hpa_lightning.data.record import assistant_turn, user_turn

    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"})
    test = [Record("0", user_turn("What?") + assistant_turn("a cat"))]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    empty = resident("VmRSS")
    began, worked = time.perf_counter(), time.process_time()
    train: Any = read_records(path) if way == "memory" else str(path)
    ahead = AHEAD if way == "ahead" else None
    stream = CVITDataModule(
        [Task("a", train, test)], processor=tokenizer, chat_template="plain", train_batch_size=16, check_ahead=ahead
    )
    stream.setup("fit")
    stream.state_dict()  # the digests, which the processes of a fit compare at its start
    setup = time.process_time() - worked
    batches = iter(stream.train_dataloader())
    next(batches)
    first, waited = time.process_time() - worked, time.perf_counter() - began
    for _ in islice(batches, BATCHES):
        pass
    return {"setup": setup, "first": first, "waited": waited, "memory": resident("VmHWM") - empty}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", nargs="+", type=int, default=[10**4, 10**5, 10**6])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--small", action="store_true", help="2000 and 20000 records")
    parser.add_argument("--folder", type=Path, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.ways[0])))
        return
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"`{' '.join(['python', 'benchmarks/reliability/records.py', *sys.argv[1:]])}`")
    print(f"at {commit.stdout.strip() or 'no commit'}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print("| records | file | MB | `setup`, s | first batch after, s | waited for it, s | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in [2000, 20_000] if options.small else options.records:
            for suffix in (".jsonl", ".json"):
                path = Path(folder) / f"{count}{suffix}"
                ways = [way for way in options.ways if (way == "list") == (suffix == ".json")]
                if ways:
                    write(path, count)
                for way in ways:
                    command = [sys.executable, __file__, "--measure", str(path), "--ways", way]
                    run = subprocess.run(command, capture_output=True, text=True)
                    if run.returncode:
                        raise SystemExit(run.stderr)
                    found = json.loads(run.stdout.splitlines()[-1])
                    seconds = " | ".join(f"{found[key]:.1f}" for key in ("setup", "first", "waited"))
                    size = path.stat().st_size / 1e6
                    print(f"| {count} | {WAYS[way]} | {size:.0f} | {seconds} | {found['memory']:.0f} |", flush=True)
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
