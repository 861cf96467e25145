"""Two processes over gloo, of which one has an accident: how soon the other stops, and what it says.

    python benchmarks/reliability/ranks.py                      all accidents with DDP and FSDP2, as a table
    python benchmarks/reliability/ranks.py killed-1 mask --strategies ddp

Each process is started by itself, as a cluster's launcher does it, so that nothing but the package and torch can
notice. The model is a tiny Llama tuned with HPA in training.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 60.0
"""Seconds within which the others have to stop."""

ACCIDENTS = {
    "none": "nothing happens",
    "killed-0": "the first process is killed in a step",
    "killed-1": "the second process is killed in a step",
    "error-0": "the first process raises an error in a step",
    "error-1": "the second process raises an error in a step",
    "records": "the second process has fewer records",
    "data": "the second process has as many other records",
    "mask": "the second process has another mask",
    "mask-later": "the second process's mask changes in a step",
    "weights": "a weight of the second process changes in a step",
}
SHARDED_AWAY = {"weights"}
"""With FSDP2 every process holds other rows anyway."""


@dataclass(frozen=True)
class Outcome:
    """How both processes ended.

    Args:
        seconds: from the accident to the end of the last process; ``None``: it had to be killed after the limit.
        codes: exit codes.
        says: the last line of the process that had no accident of its own.
    """

    seconds: float | None
    codes: tuple[int, ...]
    says: str


def run(accident: str, strategy: str, folder: Path, limit: float = LIMIT, start: Any = subprocess.Popen) -> Outcome:
    """Start both processes and wait for their ends, ``limit`` seconds after the accident at most.

    Args:
        accident: key of :data:`ACCIDENTS`.
        strategy: ``ddp`` or ``fsdp``.
        folder: for what both say.
        limit: in seconds.
        start: what starts a process: ``subprocess.Popen`` or what behaves like it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "SLURM_"))}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--rank", str(rank), "--folder", str(folder), accident]
        with (folder / f"rank{rank}.txt").open("w") as output:
            started.append(
                start(
                    [*command, "--strategies", strategy],
                    env={**environment, "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    happened = folder / "happened"
    began = time.time()
    try:
        while any(process.poll() is None for process in started):
            if happened.exists():
                began = float(happened.read_text() or began)
            if time.time() - began > (limit if happened.exists() else 5 * limit):
                for process in started:
                    process.kill()
                return Outcome(None, tuple(process.wait() for process in started), "")
            time.sleep(0.05)
    except BaseException:  # a test's time limit, Ctrl-C: they would go on alone
        for process in started:
            process.kill()
        raise
    ended = time.time()
    if happened.exists():
        began = float(happened.read_text())
    says = [(folder / f"rank{rank}.txt").read_text() for rank in range(2)]
    other = says[1 if accident.endswith("-0") else 0]
    lines = [line for line in other.splitlines() if "Error" in line] or other.splitlines()
    return Outcome(ended - began, tuple(process.returncode for process in started), lines[-1].strip() if lines else "")


def fit(accident: str, strategy: str, rank: int, folder: Path) -> None:
    """One process's part."""
    import lightning as L
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.utils.data import DataLoader
    from transformers import LlamaConfig, LlamaForCausalLM

    from hpa_lightning.callbacks import FocusPartition, MaskedFreezing, OrthogonalProjection
    from hpa_lightning.callbacks.current_task import CurrentTask
    from hpa_lightning.callbacks.task import TaskCallback

    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)

    class Tuned(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            self.model = LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=16, **shape))

        def configure_model(self) -> None:
            if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
                for block in (*self.model.model.layers, self.model):
                    fully_shard(block, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            return self.model(**batch, labels=batch["input_ids"]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def happens() -> None:
        (folder / "happened").write_text(str(time.time()))

    class Accident(TaskCallback):
        start_order = 99

        def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
            if accident == "mask" and rank == 1:
                self.change_mask(trainer)

        def change_mask(self, trainer: L.Trainer) -> None:
            happens()
            (partition,) = (callback for callback in trainer.callbacks if isinstance(callback, FocusPartition))
            mask = next(iter(partition.retained.values()))
            mask[0] = ~mask[0]

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx != 2:
                return
            if accident == f"killed-{rank}":
                happens()
                os.kill(os.getpid(), signal.SIGKILL)
            if accident == f"error-{rank}":
                happens()
                raise RuntimeError("an accident")
            if rank == 1 and accident == "mask-later":
                self.change_mask(trainer)
            if rank == 1 and accident == "weights":
                happens()
                with torch.no_grad():
                    next(pl_module.parameters())[0, 0] += 1.0

    def records(size: int, seed: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return [{"input_ids": torch.randint(0, 31, (8,), generator=generator)} for _ in range(size)]

    size, seed = 16, 0
    if accident == "records" and rank == 1:
        happens()
        size = 10
    elif accident == "data" and rank == 1:
        happens()
        seed = 7
    safety = [{"input_ids": torch.stack([record["input_ids"] for record in records(4, 1)])}]
    partition = FocusPartition(safety_data=safety, task_data=safety, probe_steps=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp" if strategy == "ddp" else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[partition, MaskedFreezing(), OrthogonalProjection(), Accident()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Tuned(), DataLoader(records(size, seed), batch_size=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accidents", nargs="*", choices=[*ACCIDENTS, []], help="default: all")
    parser.add_argument("--strategies", nargs="+", choices=["ddp", "fsdp"], default=["ddp", "fsdp"])
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        fit(options.accidents[0], options.strategies[0], options.rank, options.folder)
        return
    print("| strategy | accident | seconds to the end | exit codes | what the other says |\n|---|---|---|---|---|")
    missed = 0
    for strategy in options.strategies:
        for accident in options.accidents or ACCIDENTS:
            if strategy == "fsdp" and accident in SHARDED_AWAY:
                continue
            with tempfile.TemporaryDirectory() as folder:
                outcome = run(accident, strategy, Path(folder))
            ended = outcome.seconds is not None and any(outcome.codes) is (accident != "none")
            missed += not ended
            seconds = f"over {LIMIT:.0f}, killed" if outcome.seconds is None else f"{outcome.seconds:.1f}"
            codes = ", ".join(map(str, outcome.codes))
            says = outcome.says[:160].replace("|", "/") if accident != "none" else ""
            print(f"| {strategy} | {ACCIDENTS[accident]} | {seconds} | {codes} | {says} |", flush=True)
    if missed:
        raise SystemExit(f"{missed} did not end as they should.")


if __name__ == "__main__":
    main()
