"""What `kills.py` kills: a job starts, or goes on with, what is in its folder; its outcome is what must be the same."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import yaml  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from support.method_registry import TUNING_IDS, TUNINGS  # noqa: E402
from support.multimodal_fits import method, module, stream, trainer  # noqa: E402
from support.tiny_mllms import tiny_llava, training_records, write_llava_json  # noqa: E402

import hpa_lightning.files as files  # noqa: E402
import hpa_lightning.report  # noqa: E402, F401 - loaded once, before the processes are forked
from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation  # noqa: E402
from hpa_lightning.checkpoints import newest_checkpoint  # noqa: E402
from hpa_lightning.cli import main as command  # noqa: E402
from hpa_lightning.results.result_file import read_results  # noqa: E402

CHANGES = ("time", "resume")
"""Events that differ between two runs."""
SAID = ("command", "versions", "commit", "peak_memory")
_TIMED = {"run.json", "cell.json", "started.json", "metrics.csv", "config.yaml", "config.in.yaml", "lock"}


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
    command(["study", "run", str(path), "--store", str(folder / "store"), "--jobs", "2"])


def jobs(folder: Path, run: Callable[[Callable[[Path], None], Path], Any]) -> dict[str, Callable[[Path], None]]:
    """Name -> job. What they need is made in ``folder``; ``run`` runs a job in a process of its own."""
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
    run(partial(fit, "post_training-lora"), folder / "run")
    found: dict[str, Callable[[Path], None]] = {f"fit:{name}": partial(fit, name) for name in TUNING_IDS}
    return found | {
        "fuse": partial(fuse, models),
        "judge": partial(judge, folder / "run"),
        "report": partial(report, folder / "run"),
        "study": study,
    }


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
