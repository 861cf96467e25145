"""Memory and checkpoints by the number of tasks: what a long stream leaves behind.

    python benchmarks/reliability/tasks.py                      200 tasks with two methods, some minutes
    python benchmarks/reliability/tasks.py --small              6 tasks
    python benchmarks/reliability/tasks.py --tasks 50 --methods null_space

A tiny language model (Llama's architecture, two blocks, LoRA) is tuned on one task after another, four records each,
with a checkpoint after every task. The methods are those of tests/support/method_registry.py. Tensors and objects are
those that Python refers to after a collection; resident memory holds the allocators' reserves, too. Of the checkpoint,
the events that are written again on a resume are told apart.
"""

from __future__ import annotations

import argparse
import gc
import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import lightning as L  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from machine import command, commit  # noqa: E402
from support.method_registry import METHODS  # noqa: E402
from support.tiny_mllms import tiny_tokenizer  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from hpa_lightning.callbacks import CalibrationSettings, SequentialTuning  # noqa: E402
from hpa_lightning.data import CVITDataModule, MLLMCollator, Record, Task  # noqa: E402
from hpa_lightning.data.record import assistant_turn, user_turn  # noqa: E402
from hpa_lightning.modules import LoraSettings, MLLMModule  # noqa: E402


def records(count: int, seed: int) -> list[Record]:
    """Questions with a short answer."""
    return [
        Record(f"{seed}-{index}", user_turn(f"What is {index} of {seed}?") + assistant_turn(f"it is {index + seed}"))
        for index in range(count)
    ]


class Watch(L.Callback):
    """Weighs memory and the last checkpoint after some tasks: when the next one begins, or at the end."""

    def __init__(self, checkpoint: Path, after: list[int]) -> None:
        self._checkpoint = checkpoint
        self._after = after
        self.tasks: dict[int, dict[str, float]] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._weigh(trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._weigh(trainer.current_epoch)

    def _weigh(self, done: int) -> None:
        if done not in self._after:
            return
        gc.collect()
        held = {id(item): item for item in gc.get_objects() if isinstance(item, torch.Tensor)}
        storages = {item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in held.values()}
        saved = torch.load(self._checkpoint, weights_only=True)
        parts = [part for part in saved["callbacks"].values() if isinstance(part, dict)]
        events = sum(_size(part.get(key)) for part in parts for key in ("events", "packed_events"))
        self.tasks[done] = {
            "tensors": sum(storages.values()) / 1000,
            "objects": len(gc.get_objects()),
            "resident": int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1000,
            "checkpoint": self._checkpoint.stat().st_size / 1000,
            "events": events / 1000,
        }


def _size(value: Any) -> int:
    if value is None:
        return 0
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def run(method: str, tasks: int, after: list[int], folder: Path) -> dict[int, dict[str, float]]:
    """Tune on the tasks; what was weighed after some of them."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    module = MLLMModule.from_objects(
        LlamaForCausalLM(config),
        tokenizer,
        lora=LoraSettings(rank=2, alpha=4.0),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    collator = MLLMCollator(tokenizer, chat_template="plain")
    method_callbacks = METHODS[method](
        {
            "safety_data": [collator.train(records(4, 10**6))],
            "calibration": CalibrationSettings(safety_samples=4, task_samples=4, batch_size=4),
        }
    )
    stream = CVITDataModule(
        [Task(f"task {index}", records(4, index), records(1, -index - 1)) for index in range(tasks)],
        processor=tokenizer,
        chat_template="plain",
        train_batch_size=2,
    )
    watch = Watch(folder / "last.ckpt", after)
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[
            *method_callbacks,
            SequentialTuning(),
            watch,
            ModelCheckpoint(folder, filename="one", save_last=True),
        ],
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, stream)
    return watch.tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["post_training", "null_space"])
    parser.add_argument("--small", action="store_true", help="6 tasks")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tasks = 6 if options.small else options.tasks
    print(f"`{command()}` at {commit()}\n")
    print("| method | after task | tensors, kB | objects | resident, MB | checkpoint, kB | of it events, kB |")
    print("|---|---|---|---|---|---|---|")
    after = sorted({*(share * tasks // 100 for share in (5, 25, 50, 75)), 1, 2, tasks} - {0})
    for method in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            found = run(method, tasks, after, Path(folder))
        for number, one in found.items():
            figures = " | ".join(
                f"{one[key]:.0f}" for key in ("tensors", "objects", "resident", "checkpoint", "events")
            )
            print(f"| {method} | {number} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
