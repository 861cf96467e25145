"""What a method adds to a training step, at the geometry of LLaVA-7B's decoder blocks.

    python benchmarks/steps.py --tuning lora --samples 4
    python benchmarks/steps.py --tuning full --samples 4
    python benchmarks/steps.py --tuning lora full --methods null_space --samples 4 --pairs 4
    python benchmarks/steps.py --tuning lora full --methods null_space --samples 4 --pairs 4 --share output --budget 0
    python benchmarks/steps.py --tuning lora full --methods in_training null_space regression     # a GPU

A step is everything between two batches in Lightning: forward, backward, AdamW, callbacks. Within one fit the method's
hooks are off in one step of two; steps are compared in pairs of neighbours, since a shared machine gets slower and
faster, and the order within the pairs changes. On a CPU the time within the hooks is measured as well: it has less
noise but misses what the hooks do to the rest of the step. `floor` is the time of the method's operations and bytes at
the machine's best rates. All are shares of the plain step. On CUDA the hooks' waits for the device are counted.

Null-space projection runs with its default settings, on random inputs: every layer leaves as many directions as its
sketch has, the most that there can be. With `--share output` a small rate leaves its budget alone, so that no layer
has a direction to leave: the least that it costs; with `--budget 0` all layers leave all directions.

Regression fusion has no hook in a step; its calibration and fusion at the task's end are given in seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from machine import ceilings, command, commit, count_processor_time, default_dtype, device_name, synchronise
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from hpa_lightning.callbacks import (
    CalibrationSettings,
    FocusPartition,
    MaskedFreezing,
    NullSpaceProjection,
    OrthogonalProjection,
    RegressionFusion,
)
from hpa_lightning.modules.lora import LoraSettings, add_lora
from hpa_lightning.report.significance import estimate

METHODS = ["in_training", "null_space", "regression"]


class Hidden(Dataset):
    """Random inputs of a block."""

    def __init__(self, samples: int, tokens: int, width: int, dtype: torch.dtype) -> None:
        self.samples, self.shape, self.dtype = samples, (tokens, width), dtype

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"hidden": torch.randn(self.shape, generator=generator).to(self.dtype)}


class Blocks(L.LightningModule):
    """Decoder blocks that learn to keep their input."""

    def __init__(self, options: argparse.Namespace, tuning: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=options.hidden,
            intermediate_size=options.inner,
            num_hidden_layers=options.blocks,
            num_attention_heads=options.hidden // 128,
        )
        self.model = LlamaModel(config).to(getattr(torch, options.dtype))
        if tuning == "lora":
            add_lora(self.model, LoraSettings(rank=options.rank, alpha=2.0 * options.rank))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = batch["hidden"]
        result = self.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return torch.nn.functional.mse_loss(result.float(), hidden.float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for name, p in self.named_parameters() if p.requires_grad and "embed" not in name]
        return torch.optim.AdamW(trained, lr=1e-5, fused=True)


class Turns(L.Callback):
    """Turns the method's hooks on and off by the step and keeps the seconds of all steps but the first two."""

    def __init__(self) -> None:
        self.on = True
        self.inside = 0.0
        self.counts = False
        self.waits = 0
        """Of the second step, where nothing is done for the first time any more."""
        self.left = 0.0
        """Input directions of all layers that null-space projection has left at the end."""
        self.steps: list[tuple[bool, float, float]] = []
        """On or off, seconds of the step, seconds within the hooks."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.on = trainer.global_step < 2 or trainer.global_step % 4 in (1, 2)
        self.counts = trainer.global_step == 1 and pl_module.device.type == "cuda"
        self.inside = 0.0
        synchronise(pl_module.device)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        synchronise(pl_module.device)
        if trainer.global_step > 2:
            self.steps.append((self.on, time.perf_counter() - self.start, self.inside))
            print(f"step {len(self.steps)}: {self.on}, {self.steps[-1][1]:.3f} s", file=sys.stderr, flush=True)

    def call(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook if its turn is on."""
        if not self.on:
            return
        start = time.perf_counter()
        if self.counts:
            self.waits += waits_of(lambda: hook(*arguments))
        else:
            hook(*arguments)
        self.inside += time.perf_counter() - start


def waits_of(function: Callable[[], None]) -> int:
    """How often a function waits for the CUDA device, by torch's own warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in told)


class Switched:
    """A callback whose hooks within a step can be turned off."""

    turns: Turns

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self.turns.call(super().on_before_optimizer_step, *arguments)  # type: ignore[misc]

    def after_step(self, *arguments: Any) -> None:
        # Some call it at the task's start and end too, where the hooks are on.
        self.turns.call(super().after_step, *arguments)  # type: ignore[misc]


class SwitchedFreezing(Switched, MaskedFreezing):
    pass


class SwitchedProjection(Switched, OrthogonalProjection):
    pass


class SwitchedNullSpace(Switched, NullSpaceProjection):
    pass


def callbacks_of(method: str, options: argparse.Namespace, turns: Turns) -> list[L.Callback]:
    """The method, calibrated on as few tokens as leave its steps what they are."""
    dtype = getattr(torch, options.dtype)
    few = DataLoader(Hidden(1, 64, options.hidden, dtype))
    if method == "in_training":
        one = CalibrationSettings(safety_samples=1, task_samples=1, batch_size=1)
        freezing, projection = SwitchedFreezing(), SwitchedProjection()
        freezing.turns = projection.turns = turns
        return [FocusPartition(1, safety_data=few, task_data=few, calibration=one), freezing, projection]
    # The rank of what is kept is bounded by the tokens: 1280 hold about as many directions as 90 % of real inputs.
    two = CalibrationSettings(2, 2, batch_size=2, safety_positions="all")  # there are no labels
    data = DataLoader(Hidden(2, options.tokens, options.hidden, dtype), batch_size=2)
    if method == "regression":
        return [RegressionFusion(safety_data=data, task_data=data, calibration=two)]
    null_space = SwitchedNullSpace(
        memory_weight=0.0,
        safety_data=data,
        calibration=two,
        form=options.form,
        rank=options.directions,
        share=options.share,
        budget=options.budget,
    )
    null_space.turns = turns
    return [null_space]


def run(method: str, tuning: str, options: argparse.Namespace, folder: str) -> tuple[Turns, dict[str, float]]:
    """Fit a fresh block; return its steps, and the seconds of the method's work outside of them by phase."""
    turns = Turns()
    callbacks = callbacks_of(method, options, turns)
    trainer = L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-true" if options.dtype == "bfloat16" else "32-true",
        max_steps=2 * options.pairs + 2,
        callbacks=[*callbacks, turns],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Hidden(
        options.samples * (2 * options.pairs + 2), options.tokens, options.hidden, getattr(torch, options.dtype)
    )
    trainer.fit(Blocks(options, tuning), DataLoader(data, batch_size=options.samples))
    events = callbacks[0].state_dict()["events"]
    turns.left = sum(event["directions"] for event in events if event["event"] == "protection")
    times = {event["phase"]: event["seconds"] for event in events if event["event"] == "time"}
    return turns, {phase: seconds for phase, seconds in times.items() if phase != "train"}


def floor(method: str, tuning: str, options: argparse.Namespace, rates: dict[str, float]) -> float:
    """Seconds of what one step of the method has to compute and move: the larger of the two."""
    weights = options.blocks * (4 * options.hidden**2 + 3 * options.hidden * options.inner)
    width = 2 if options.dtype == "bfloat16" else 4
    copy, product = rates["copy"], rates[options.dtype]
    if method == "null_space":
        # D U alone where no direction has to be left, and its product with U^T; of LoRA A U, A A^T and B^T B.
        columns, rows = 6 * options.hidden + options.inner, 5 * options.hidden + 2 * options.inner
        held = min(2 * options.tokens, options.hidden, options.directions if options.form == "sketch" else math.inf)
        leaves = options.share == "energy" or options.budget == 0
        q, products = options.rank, 2 if leaves else 1
        if tuning == "lora":
            grams = 0 if options.share == "energy" else 2 * q**2 * (columns + rows)
            operations = options.blocks * (2 * products * q * held * columns + grams)
        else:
            operations = 2 * products * held * weights
        inputs = options.blocks * (3 * options.hidden + options.inner)  # U is held once for each of four
        moved = 4 * held * inputs + (0 if tuning == "lora" else (2 + leaves) * weights * width)
        return max(operations / rates["float32"], moved / copy)
    if tuning == "lora":  # W_prev A^T
        return max(2 * weights * options.rank / product, weights * width / copy)
    # Freezing reads the kept columns alone; the projection reads W and W_prev for the inner product, and both again to
    # write W.
    return weights * width * (2 + 3) / copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["in_training"])
    parser.add_argument("--tuning", nargs="+", choices=["lora", "full"], default=["lora"])
    parser.add_argument("--blocks", type=int, help="1; on CUDA 4, since the launches are shared by all layers")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--directions", type=int, default=192, help="null_space: rank of its sketches")
    parser.add_argument("--form", choices=["sketch", "exact"], default="sketch", help="null_space: of its memory")
    parser.add_argument(
        "--share", choices=["energy", "output", "nearest"], default="energy", help="null_space: the rule"
    )
    parser.add_argument("--budget", type=float, help="null_space: the callback's default if left out")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--samples", type=int, default=8, help="samples of a step")
    parser.add_argument("--tokens", type=int, default=640, help="tokens of a sample, image tokens included")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of a step without and a step with the method")
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of the processor, where others use it too"
    )
    options = parser.parse_args()
    if options.processor_time:
        count_processor_time()
    if options.pairs < 2:
        parser.error("--pairs: expected 2 or more, for the interval.")
    options.dtype = options.dtype or default_dtype(options.device)
    options.blocks = options.blocks or (4 if options.device == "cuda" else 1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device(options.device)
    rates = ceilings(device, min(2048, options.hidden))
    print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}")
    print(f"Best rates: {options.dtype} {rates[options.dtype] / 1e9:.0f}, copy {rates['copy'] / 1e9:.0f} G/s.\n")
    heads = ["method", "tuning", "blocks", "tokens a step", "plain step", "the method adds", "of pairs"]
    heads += ["within its hooks", "floor", "directions left"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    for method in options.methods:
        for tuning in options.tuning:
            with tempfile.TemporaryDirectory() as folder:
                turns, phases = run(method, tuning, options, folder)
            print(line(method, tuning, options, turns, phases, rates), flush=True)


def line(
    method: str,
    tuning: str,
    options: argparse.Namespace,
    turns: Turns,
    phases: dict[str, float],
    rates: dict[str, float],
) -> str:
    """The table's line of one fit."""
    plain, with_hooks = ([seconds for on, seconds, _ in turns.steps if on is wanted] for wanted in (False, True))
    base = statistics.median(plain)
    cells = [method, tuning, str(options.blocks), str(options.samples * options.tokens), f"{1000 * base:.1f} ms"]
    if method == "regression":
        outside = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
        return f"| {' | '.join(cells)} | nothing in a step; once a task: {outside} | | | | |"
    added = estimate([100 * (one - other) / base for one, other in zip(with_hooks, plain, strict=True)])
    inside = f"{100 * statistics.median(inside for on, _, inside in turns.steps if on) / base:.1f} %"
    if options.device == "cuda":
        inside = f"{turns.waits} waits for the device"
    cells += [f"{added.mean:.1f} ± {added.half_width:.1f} %", str(options.pairs), inside]
    cells.append(f"{100 * floor(method, tuning, options, rates) / base:.2f} %")
    cells.append(f"{turns.left:.0f}" if method == "null_space" else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
