"""What the in-training trio adds to a training step, at the geometry of one LLaVA-7B decoder block.

    python benchmarks/steps.py --tuning lora --samples 4
    python benchmarks/steps.py --tuning full --samples 4

A step is everything between two batches in Lightning: forward, backward, AdamW, callbacks. Within one fit the trio's
hooks are off in one step of two; steps are compared in pairs of neighbours, since a shared machine gets slower and
faster, and the order within the pairs changes. On a CPU the time within the hooks is measured as well: it has less
noise but misses what the hooks do to the rest of the step. `floor` is the time of the trio's operations and bytes at
the machine's best rates. All are shares of the plain step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from machine import ceilings, command, commit, device_name, synchronise
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from hpa_lightning.callbacks import CalibrationSettings, FocusPartition, MaskedFreezing, OrthogonalProjection
from hpa_lightning.modules.adapters import LoraSettings, add_lora
from hpa_lightning.report.tables import estimate


class Hidden(Dataset):
    """Random inputs of a block."""

    def __init__(self, samples: int, tokens: int, width: int, dtype: torch.dtype) -> None:
        self.samples, self.shape, self.dtype = samples, (tokens, width), dtype

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"hidden": torch.randn(self.shape, generator=generator).to(self.dtype)}


class OneBlock(L.LightningModule):
    """A decoder block that learns to keep its input."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=options.hidden,
            intermediate_size=options.inner,
            num_hidden_layers=1,
            num_attention_heads=options.hidden // 128,
        )
        self.model = LlamaModel(config).to(getattr(torch, options.dtype))
        if options.tuning == "lora":
            add_lora(self.model, LoraSettings(rank=options.rank, alpha=2.0 * options.rank))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = batch["hidden"]
        result = self.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return torch.nn.functional.mse_loss(result.float(), hidden.float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for name, p in self.named_parameters() if p.requires_grad and "embed" not in name]
        return torch.optim.AdamW(trained, lr=1e-5, fused=True)


class Turns(L.Callback):
    """Turns the trio's hooks on and off by the step and keeps the seconds of all steps but the first two."""

    def __init__(self) -> None:
        self.on = True
        self.inside = 0.0
        self.steps: list[tuple[bool, float, float]] = []
        """On or off, seconds of the step, seconds within the hooks."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.on = trainer.global_step < 2 or trainer.global_step % 4 in (1, 2)
        self.inside = 0.0
        synchronise(pl_module.device)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        synchronise(pl_module.device)
        if trainer.global_step > 2:
            self.steps.append((self.on, time.perf_counter() - self.start, self.inside))
            print(f"step {len(self.steps)}: {self.on}, {self.steps[-1][1]:.3f} s", file=sys.stderr, flush=True)


class Switched:
    """A callback of the trio whose hooks within a step can be turned off."""

    turns: Turns

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self._call(super().on_before_optimizer_step, *arguments)  # type: ignore[misc]

    def after_step(self, *arguments: Any) -> None:
        # `MaskedFreezing` calls it at the task's start too, where the hooks are on.
        self._call(super().after_step, *arguments)  # type: ignore[misc]

    def _call(self, hook: Callable[..., None], *arguments: Any) -> None:
        if self.turns.on:
            start = time.perf_counter()
            hook(*arguments)
            self.turns.inside += time.perf_counter() - start


class SwitchedFreezing(Switched, MaskedFreezing):
    pass


class SwitchedProjection(Switched, OrthogonalProjection):
    pass


def run(options: argparse.Namespace, folder: str) -> list[tuple[bool, float, float]]:
    """Fit a fresh block and return its steps."""
    dtype = getattr(torch, options.dtype)
    turns = Turns()
    calibration = CalibrationSettings(safety_samples=1, task_samples=1, batch_size=1)
    safety = DataLoader(Hidden(1, 64, options.hidden, dtype))
    partition = FocusPartition(probe_steps=1, safety_data=safety, task_data=safety, calibration=calibration)
    freezing, projection = SwitchedFreezing(), SwitchedProjection()
    freezing.turns = projection.turns = turns
    trainer = L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-true" if options.dtype == "bfloat16" else "32-true",
        max_steps=2 * options.pairs + 2,
        callbacks=[partition, freezing, projection, turns],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Hidden(options.samples * (2 * options.pairs + 2), options.tokens, options.hidden, dtype)
    trainer.fit(OneBlock(options), DataLoader(data, batch_size=options.samples))
    return turns.steps


def floor(options: argparse.Namespace, rates: dict[str, float]) -> float:
    """Seconds of what one step of the trio has to compute and move: the larger of the two."""
    weights = 4 * options.hidden**2 + 3 * options.hidden * options.inner
    width = 2 if options.dtype == "bfloat16" else 4
    if options.tuning == "lora":  # W_prev A^T
        return max(2 * weights * options.rank / rates[options.dtype], weights * width / rates["copy"])
    # Freezing reads the kept columns alone; the projection reads W and W_prev for the inner product, and both again to
    # write W.
    return weights * width * (2 + 3) / rates["copy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--tuning", choices=["lora", "full"], default="lora")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--samples", type=int, default=8, help="samples of a step")
    parser.add_argument("--tokens", type=int, default=640, help="tokens of a sample, image tokens included")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of a step without and a step with the trio")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs: expected 2 or more, for the interval.")
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        steps = run(options, folder)
    plain, with_trio = ([seconds for on, seconds, _ in steps if on is trio] for trio in (False, True))
    base = statistics.median(plain)
    added = estimate([100 * (one - other) / base for one, other in zip(with_trio, plain, strict=True)])
    inside = 100 * statistics.median(inside for on, _, inside in steps if on) / base
    device = torch.device(options.device)
    rates = ceilings(device, 2048)
    print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}\n")
    print("| tuning | tokens a step | plain step | the trio adds | of pairs | within its hooks | floor |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {options.tuning} | {options.samples * options.tokens} | {base:.2f} s "
        f"| {added.mean:.1f} ± {added.half_width:.1f} % | {options.pairs} "
        f"| {'' if options.device == 'cuda' else f'{inside:.1f} %'} | {100 * floor(options, rates) / base:.1f} % |"
    )
    print(f"\nBest rates: {options.dtype} {rates[options.dtype] / 1e9:.0f}, copy {rates['copy'] / 1e9:.0f} G/s.")


if __name__ == "__main__":
    main()
