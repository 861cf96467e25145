"""What gives the same weights bit for bit, what only to some digits, and why: one table.

    python benchmarks/reliability/determinism.py                     # some minutes, CPU
    python benchmarks/reliability/determinism.py --methods in_training-lora --only "resumed" "workers"

A tiny LLaVA is tuned on two tasks (three epochs of three steps, AdamW) by methods of
tests/support/method_registry.py. Each variation is compared with a reference run: are all weights the same bits, and
else, to how many digits of the update `W - W_start` do they agree (the norm of the difference against that of the
update). Rows with two processes are fits on one task over the same samples in each step, so that one process is
their reference.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
METHODS = ("in_training-lora", "in_training-full", "post_training-lora", "post_training-full")


@dataclass(frozen=True)
class Run:
    """One fit.

    Args:
        method: name in the registry of tests, with the tuning.
        stream: two tasks of a stream; else one task over a plain loader.
        workers: of every loader.
        threads: of torch.
        processes: over gloo.
        strategy: of Lightning, with several processes: ``"ddp"`` or ``"fsdp"``.
        batch: samples in a step of all processes, before accumulation.
        accumulate: batches in a step.
        evaluated: scored after each task.
        save: write checkpoints after every step.
        resume: a checkpoint's name, from the run that saved.
    """

    method: str
    stream: bool = True
    workers: int = 0
    threads: int = 1
    processes: int = 1
    strategy: str = "auto"
    batch: int = 4
    accumulate: int = 1
    evaluated: bool = False
    save: bool = False
    resume: str = ""


def rows(method: str) -> list[tuple[str, str, Run, Run, str]]:
    """Name of the variation, its own name for `--only`, reference, the varied run, why."""
    one, plain = Run(method, save=True), Run(method, stream=False)
    ddp, fsdp = (replace(plain, processes=2, strategy=name) for name in ("ddp", "fsdp"))
    order = "sums of gradients in another order"
    resumed = {step: replace(one, resume=f"step={step}") for step in (3, 4)}
    states = "states of optimizer, loader and draws"
    return [
        ("the same seed twice", "seed", one, replace(one, save=False), "every draw is seeded, CPU kernels are fixed"),
        ("2 loader workers", "workers", one, replace(one, workers=2), "workers open pictures, they draw nothing"),
        ("scored after each task", "scored", one, replace(one, evaluated=True), "the random state is put back"),
        ("resumed within an epoch (step 4)", "resumed", one, resumed[4], states),
        ("resumed at a task's end (step 3)", "resumed", one, resumed[3], states),
        (
            "2 threads",
            "threads",
            one,
            replace(one, threads=2),
            "sums of this size are not split among threads; larger ones may be",
        ),
        ("batches of 2, accumulated", "accumulated", one, replace(one, batch=2, accumulate=2), order),
        ("2 processes, DDP, twice", "ddp", ddp, ddp, "gloo adds in a fixed order"),
        ("2 processes, FSDP2, twice", "fsdp", fsdp, fsdp, "gloo adds in a fixed order"),
        ("2 processes, DDP, against 1", "ddp", plain, ddp, order),
        ("2 processes, FSDP2, against 1", "fsdp", plain, fsdp, order),
    ]


def fit(run: Run, folder: Path, checkpoints: Path) -> None:
    """One process's part; rank zero saves the weights before and after."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from support.method_fits import dense
    from support.method_registry import TUNING_IDS, TUNINGS
    from support.multimodal_fits import method, module, stream, trainer
    from support.processes_script import EverySecond
    from support.tiny_mllms import training_records
    from torch.utils.data import DataLoader

    from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
    from hpa_lightning.data import MLLMCollator

    warnings.filterwarnings("ignore")
    torch.set_num_threads(run.threads)
    L.seed_everything(0, verbose=False)
    name, lora = TUNINGS[TUNING_IDS.index(run.method)]
    tuned = module(lora)
    start = dense(tuned)
    callbacks: list[Any] = [*([SequentialTuning()] if run.stream else []), *method(name)]
    if run.evaluated:
        callbacks.append(TaskEvaluation(report=False))
    if run.save:
        save = ModelCheckpoint(checkpoints, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks.append(save)
    options: dict[str, Any] = {"enable_checkpointing": run.save, "accumulate_grad_batches": run.accumulate}
    if run.strategy == "fsdp":
        options["strategy"] = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    elif run.processes > 1:
        options["strategy"] = "ddp"
    if run.processes > 1:
        options |= {"devices": run.processes, "use_distributed_sampler": False}
    if run.stream:
        data: Any = stream(evaluated=run.evaluated)
        data.train_batch_size, data.num_workers = run.batch, run.workers
        resumed = str(checkpoints / f"{run.resume}.ckpt") if run.resume else None
        runner = trainer(folder, callbacks, **options)
        runner.fit(tuned, data, ckpt_path=resumed)
    else:
        size = run.batch // run.processes
        collate = MLLMCollator(tuned.processor).train
        order = EverySecond(12, run.processes)
        loader = DataLoader(training_records(12), batch_size=size, sampler=order, collate_fn=collate)
        runner = trainer(folder, callbacks, max_epochs=2, **options)
        runner.fit(tuned, loader)
    after = dense(tuned)
    if runner.is_global_zero:
        torch.save({"before": start, "after": after}, folder / "weights.pt")


def start(run: Run, folder: Path, checkpoints: Path) -> dict[str, Any]:
    """Do a run in a process, or in several, of its own; return its weights.

    Raises:
        SystemExit: it fails.
    """
    import torch

    folder.mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "MASTER_"))}
    environment |= {"OMP_NUM_THREADS": str(run.threads)}
    if run.processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
        environment["WORLD_SIZE"] = str(run.processes)
    command = [sys.executable, __file__, "--run", json.dumps(asdict(run)), str(folder), str(checkpoints)]
    started = []
    for rank in range(run.processes):
        own = environment | ({"LOCAL_RANK": str(rank)} if run.processes > 1 else {})
        with (folder / f"log{rank}.txt").open("w") as log:
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{run} failed:\n{(folder / 'log0.txt').read_text()[-3000:]}")
    found: dict[str, Any] = torch.load(folder / "weights.pt")
    return found


def agreement(reference: dict[str, Any], other: dict[str, Any]) -> str:
    """``bit for bit``, or the number of digits of the update to which both agree."""
    import torch

    if all(torch.equal(weight, other["after"][name]) for name, weight in reference["after"].items()):
        return "bit for bit"
    difference = sum(
        float((weight - other["after"][name]).square().sum()) for name, weight in reference["after"].items()
    )
    update = sum(
        float((weight - reference["before"][name]).square().sum()) for name, weight in reference["after"].items()
    )
    return f"{-math.log10(math.sqrt(difference / update)):.1f} digits"


def merged_adapters() -> str:
    """The logits of a model with its adapters against those after they were merged into the weights."""
    import torch
    from support.multimodal_fits import module
    from support.tiny_mllms import training_records

    from hpa_lightning.data import MLLMCollator
    from hpa_lightning.modules.lora import lora_layers, merge_lora_

    tuned = module(True)
    batch = MLLMCollator(tuned.processor).train(training_records(4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, factors in lora_layers(tuned):
            factors.lora_b.normal_(std=0.05, generator=generator)
        before = tuned.model(**batch, use_cache=False).logits
        merge_lora_(tuned)
        after = tuned.model(**batch, use_cache=False).logits
    if torch.equal(before, after):
        return "bit for bit"
    return f"{-math.log10(float((before - after).norm() / before.norm())):.1f} digits of the logits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="default: %(default)s")
    parser.add_argument(
        "--only", nargs="+", help="seed, workers, scored, resumed, threads, accumulated, ddp, fsdp, merged"
    )
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        fit(Run(**json.loads(options.run[0])), Path(options.run[1]), Path(options.run[2]))
        return
    found: dict[str, list[str]] = {}
    why: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for method in options.methods:
            done: dict[Run, dict[str, Any]] = {}
            checkpoints = Path(temporary, method, "checkpoints")
            for name, short, reference, varied, reason in rows(method):
                if options.only and short not in options.only:
                    continue
                if reference not in done:
                    done[reference] = start(reference, Path(temporary, method, str(len(done))), checkpoints)
                other = start(
                    varied,
                    Path(temporary, method, f"{name} varied"),
                    Path(temporary, "unused") if not varied.resume else checkpoints,
                )
                found.setdefault(name, []).append(agreement(done[reference], other))
                why[name] = reason
                print(f"{method}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"\n| | {' | '.join(f'`{method}`' for method in options.methods)} | why |")
    print("|---" * (len(options.methods) + 2) + "|")
    for name, cells in found.items():
        print(f"| {name} | {' | '.join(cells)} | {why[name]} |")
    if not options.only or "merged" in options.only:
        print(f"\nAdapters against merged weights: {merged_adapters()}.")
    exact = {"the same seed twice", "2 loader workers", "scored after each task", *(n for n in found if "resumed" in n)}
    missed = [name for name in found if name in exact and set(found[name]) != {"bit for bit"}]
    if missed:
        raise SystemExit(f"not bit for bit, though it has to be: {missed}")


if __name__ == "__main__":
    main()
