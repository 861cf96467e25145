"""Kill -9 at random moments and at named boundaries: going on must give, bit for bit, what an uncut run gives.

    python benchmarks/reliability/kills.py                      # 20 kills, some minutes
    python benchmarks/reliability/kills.py --kills 200 --log kills.jsonl
    python benchmarks/reliability/kills.py --jobs fit:post_training-lora judge

Jobs: `fit:NAME` for every method of tests/callbacks/registry.py with LoRA and in full (two tasks on a tiny LLaVA,
scored, a checkpoint every second step), `fuse`, `judge`, `report`, `study` (two cells of the embedded benchmark). Each
runs in a forked process; it kills itself at a boundary, or is killed after a random time, and the job is started again
until it ends. Compared are weights, events without times and commands, answers, tables and files, by their content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
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

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "callbacks")]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import yaml  # noqa: E402
from helpers_mllm import tiny_llava, training_records, write_llava_json  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from registry import TUNING_IDS, TUNINGS  # noqa: E402
from test_stream import method, module, stream, trainer  # noqa: E402

import hpa_lightning.files as files  # noqa: E402
import hpa_lightning.report  # noqa: E402, F401 - loaded once, before the processes are forked
from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation  # noqa: E402
from hpa_lightning.callbacks.task import TaskCallback  # noqa: E402
from hpa_lightning.checkpoints import newest_checkpoint  # noqa: E402
from hpa_lightning.cli import main as command  # noqa: E402
from hpa_lightning.fuse.output import PartialOutput  # noqa: E402
from hpa_lightning.result_file import ResultWriter, read_results  # noqa: E402

CHANGES = ("time", "resume")
"""Events that differ between two runs."""
SAID = ("command", "versions", "commit")


# -- the jobs: each starts, or goes on with, what is in its folder -----------------------------------------------------


def fit(name: str, folder: Path) -> None:
    wanted, lora = TUNINGS[TUNING_IDS.index(name)]
    checkpoint, _ = newest_checkpoint([folder])
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    callbacks = [SequentialTuning(), *method(wanted), TaskEvaluation(report=False), save]
    tuned = module(lora)
    data = stream(evaluated=True)
    trainer(folder, callbacks, enable_checkpointing=True).fit(tuned, data, ckpt_path=checkpoint)
    digest = hashlib.sha256()
    for key, value in sorted(tuned.state_dict().items()):
        digest.update(key.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    files.write_text(folder / "weights.txt", digest.hexdigest())


def fuse(models: Path, folder: Path) -> None:
    if not (folder / "fused").exists():  # a finished output is not written again
        data = ["--safety-data", str(models / "safety.json"), "--task-data", str(models / "task.json")]
        where = [
            "--before",
            str(models / "before"),
            "--after",
            str(models / "after"),
            "--output",
            str(folder / "fused"),
        ]
        command(["fuse", *where, *data, "--image-folder", str(models / "images"), "--task-samples", "4"])


def judge(run: Path, folder: Path) -> None:
    if not (folder / "judged").exists():
        command(["judge", str(run), "--judges", "rules-v1", "vlguard", "--output", str(folder / "judged")])


def report(run: Path, folder: Path) -> None:
    command(["report", str(run), "--output", str(folder / "report")])


def study(folder: Path) -> None:
    sizes = {"seed": "${seed}", "steps": 2, "train_size": 32, "test_size": 2, "task_order": ["charts", "digits"]}
    names = ["SequentialTuning", "HarmoniousFusion", "TaskEvaluation"]
    callbacks: list[Any] = [{"class_path": f"hpa_lightning.callbacks.{name}"} for name in names]
    callbacks[-1]["init_args"] = {"method": "${title}", "report": False}
    saver = {"every_n_train_steps": 1, "save_top_k": 2, "monitor": "step", "mode": "max"}
    callbacks.append({"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver})
    logger = {"save_dir": "${folder}", "name": "", "version": ""}
    base = {
        "seed_everything": "${seed}",
        "model": {"class_path": "hpa_lightning.modules.NanoModule"},
        "data": {"class_path": "hpa_lightning.data.nano.NanoDataModule", "init_args": sizes},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": -1,
            "reload_dataloaders_every_n_epochs": 1,
            "enable_progress_bar": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
            "callbacks": callbacks,
        },
    }
    groups = {"all": {"title": "All", "methods": ["hpa"], "seeds": [1, 2]}}
    path = folder / "study.yaml"
    if not path.exists():
        files.write_text(path, yaml.safe_dump({"base": base, "methods": {"hpa": {"title": "HPA"}}, "groups": groups}))
    while len(list((folder / "store").glob("*/*/*/cell.json"))) < 2:  # one that outlived its runner is left alone
        command(["study", "run", str(path), "--store", str(folder / "store"), "--jobs", "2"])
        time.sleep(1)


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
        (PartialOutput, "write_block"),
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


# -- killing -----------------------------------------------------------------------------------------------------------


def run(
    job: Callable[[Path], None], folder: Path, arrange: Callable[[], None], after: float | None
) -> tuple[int, float]:
    """Run a job in a forked process, kill it after so many seconds; return its status (-9: killed) and the seconds."""
    start = time.monotonic()
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
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start
        if after is not None and time.monotonic() - start > after:
            _kill(pid)
        time.sleep(0.01)


def _kill(pid: int) -> None:
    """The process and those that it has started: a machine that loses power spares none."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                _kill(int(status.parent.name))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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


def outcome(folder: Path) -> dict[str, str]:
    """Every file that the job has made -> a digest of what must be the same."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = set(path.relative_to(folder).parts)
        if not path.is_file() or any(part.startswith(("interrupted_", ".", "log.txt")) for part in parts):
            continue
        if path.name == "results.jsonl":
            events = [event for event in read_results(path) if event["event"] not in CHANGES]
            kept = [{key: value for key, value in event.items() if key not in SAID} for event in events]
            content = json.dumps(
                sorted(kept, key=lambda event: json.dumps(event, sort_keys=True)), sort_keys=True
            ).encode()
        elif (
            path.suffix in (".ckpt", ".html", ".png", ".pdf")
            or path.name in _TIMED
            or path.name.startswith("config.res")
        ):
            continue  # hold times or the folder's name; what they show is compared
        else:
            content = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
        found[name] = hashlib.sha256(content).hexdigest()
    return found


_TIMED = {"run.json", "cell.json", "started.json", "metrics.csv", "config.yaml", "config.in.yaml", "lock"}


def jobs(folder: Path) -> dict[str, Callable[[Path], None]]:
    """Name -> job; what they need is made in ``folder``."""
    models = folder / "models"
    for name, seed in (("before", 0), ("after", 1)):
        model, processor = tiny_llava(layers=2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.model.language_model.layers.parameters():
                parameter += seed * 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(models / name, max_shard_size="60KB")
        processor.save_pretrained(models / name)
    for seed, name in enumerate(("safety", "task")):
        write_llava_json(models / f"{name}.json", training_records(8, seed, name), models / "images")
    (folder / "run").mkdir(exist_ok=True)
    run(partial(fit, "post_training-lora"), folder / "run", lambda: None, None)
    found: dict[str, Callable[[Path], None]] = {f"fit:{name}": partial(fit, name) for name in TUNING_IDS}
    return found | {
        "fuse": partial(fuse, models),
        "judge": partial(judge, folder / "run"),
        "report": partial(report, folder / "run"),
        "study": study,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all (default: %(default)s); goal: 200")
    parser.add_argument("--jobs", nargs="+", help="names (default: all, the fits in turn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--log", type=Path, help="one JSON line for each kill")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    draw, begin = random.Random(options.seed), time.monotonic()
    totals: dict[str, list[int]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        known = jobs(Path(temporary))
        wanted = options.jobs or _in_turn(list(known))
        references: dict[str, tuple[dict[str, str], float]] = {}
        for number in range(options.kills):
            if time.monotonic() - begin > 60 * options.minutes:
                break
            name = wanted[number % len(wanted)]
            kind, job = name.split(":")[0], known[name]
            if name not in references:
                whole = Path(temporary, name.replace(":", "_"), "whole")
                whole.mkdir(parents=True)
                status, seconds = run(job, whole, lambda: None, None)
                if status:
                    raise SystemExit(f"{name} fails without a kill:\n{(whole / 'log.txt').read_text()[-3000:]}")
                references[name] = (outcome(whole), seconds)
            expected, seconds = references[name]
            place = Path(temporary, name.replace(":", "_"), str(number))
            place.mkdir()
            after, arrange, what = None, (lambda: None), ""
            if draw.random() < 0.5:
                after = draw.uniform(0.0, 0.9 * seconds)
                what = f"after {after:.2f} of {seconds:.2f} s"
            else:
                owner, function = draw.choice(BOUNDARIES[kind])
                call, before = draw.choice((1, 1, 1, 2, 2, 3, 5)), draw.random() < 0.5
                what = f"{'before' if before else 'after'} call {call} of {owner.__name__}.{function}"
                arrange = partial(at, owner, function, call, before)
            status, _ = run(job, place, arrange, after)
            killed, tries = status == -signal.SIGKILL, 0
            while status and tries < 4:
                tries += 1
                status, _ = run(job, place, lambda: None, None)
            found = outcome(place)
            differs = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            good = status == 0 and not differs
            failed += killed and not good
            count = totals.setdefault(kind, [0, 0, 0])
            for index, value in enumerate((killed, killed and good, tries > 1)):
                count[index] += value
            line = {"job": name, "kill": what, "killed": killed, "alike": good, "starts": tries, "differs": differs[:5]}
            print(json.dumps(line), flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if status:
                print((place / "log.txt").read_text()[-3000:])
    print("\n| job | killed | bit for bit alike | needed more than one start |\n|---|---|---|---|")
    for kind, (kills, alike, more) in totals.items():
        print(f"| `{kind}` | {kills} | {alike} | {more} |")
    print(
        f"\n{sum(count[0] for count in totals.values())} kills in {time.monotonic() - begin:.0f} s, {failed} not alike."
    )
    raise SystemExit(1 if failed else 0)


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
