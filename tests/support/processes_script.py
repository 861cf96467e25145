"""Run by test_processes.py: fits the foreign module with every method, in one process or in two; saves how each ended.

processes_script.py FOLDER STRATEGY [CASE...]     STRATEGY: one, ddp, fsdp, fsdp-one (a single process)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from support.foreign_module import Tokens, foreign_module, quiet_trainer
from support.method_fits import Watcher, calibration_data, dense
from support.method_registry import METHODS, TUNING_IDS, TUNINGS
from support.programs import report_fatal_signals
from torch.utils.data import DataLoader, Sampler

from hpa_lightning.results.result_file import read_results

NOT_SHARDED = ["olora-lora", "reglora-lora", "reglora_repeats-lora"]
RESUMED = ["in_training-full", "post_training-full", "null_space-lora"]


class EverySecond(Sampler[int]):
    """This process's samples in order: Lightning's own sampler shuffles, differently for one process and for two."""

    def __init__(self, size: int, processes: int) -> None:
        self.size, self.processes = size, processes

    def __iter__(self) -> Iterator[int]:
        return iter(range(int(os.environ.get("LOCAL_RANK", "0")), self.size, self.processes))

    def __len__(self) -> int:
        return self.size // self.processes


def strategy(name: str) -> Any:
    if name.startswith("fsdp"):
        return ModelParallelStrategy(data_parallel_size=1 if name == "fsdp-one" else 2, tensor_parallel_size=1)
    return "ddp" if name == "ddp" else "auto"


def fit(
    folder: Path, name: str, case: str, epochs: int = 2, resume: bool = False, keep: bool = False
) -> dict[str, Any]:
    """One fit over the same samples in each step, whatever the number of processes."""
    devices = 1 if name.endswith("one") else 2
    method, lora = dict(zip(TUNING_IDS, TUNINGS, strict=True))[case]
    callbacks = METHODS[method](calibration_data())
    extra: list[L.Callback] = []
    if method == "in_training":
        extra = [Watcher(callbacks[0])]
    module = foreign_module(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01), lora)
    for block in module.model.layers:
        block.dropout.p = 0.0
    if keep:
        extra.append(ModelCheckpoint(dirpath=folder / case, filename="{epoch}", save_top_k=-1, every_n_epochs=1))
    trainer = quiet_trainer(
        folder / case,
        [*callbacks, *extra],
        strategy=strategy(name),
        devices=devices,
        max_epochs=epochs,
        enable_checkpointing=keep,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
    )
    checkpoint = str(folder / case / "epoch=0.ckpt") if resume else None
    loader = DataLoader(Tokens(1, 24), batch_size=8 // devices, sampler=EverySecond(24, devices))
    trainer.fit(module, loader, ckpt_path=checkpoint)
    result: dict[str, Any] = {"weights": dense(module), "rank": trainer.global_rank}
    if trainer.is_global_zero:
        events = read_results(folder / case / "results.jsonl")
        result["events"] = [
            tuple(event.get(key) for key in ("event", "phase", "module", "retained")) for event in events
        ]
    if method == "in_training":
        result |= {"masks": extra[0].masks, "worst": extra[0].worst_inner_product, "steps": extra[0].steps}
    return result


def main(folder: Path, name: str, cases: list[str]) -> None:
    torch.set_num_threads(1)
    sharded, results = name.startswith("fsdp"), {}
    for case in cases:
        if not sharded or case not in NOT_SHARDED:
            results[case] = fit(folder, name, case, keep=sharded and case in RESUMED)
    if sharded:
        for case in filter(cases.__contains__, RESUMED):
            results[f"{case}, resumed"] = fit(folder, name, case, resume=True)
    torch.save(results, folder / f"rank{results[cases[0]]['rank']}.pt")


if __name__ == "__main__":
    report_fatal_signals()
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or TUNING_IDS)
