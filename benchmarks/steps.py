"""What the in-training trio adds to a training step, at the geometry of one LLaVA-7B decoder block.

    python benchmarks/steps.py --tuning lora
    python benchmarks/steps.py --tuning full --samples 1

A step is everything between two batches in Lightning: forward, backward, AdamW, callbacks. Plain tuning and the trio
take turns in one process; the shortest steps are compared, since whatever else a shared machine does only adds time,
and the medians stand beside them. `floor` is the time of the trio's operations and bytes at the machine's best
rates, as a share of the plain step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
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


class Stopwatch(L.Callback):
    """Seconds of every step but the first two."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        synchronise(pl_module.device)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        synchronise(pl_module.device)
        if trainer.global_step > 2:
            self.seconds.append(time.perf_counter() - self.start)


def run(options: argparse.Namespace, trio: bool, folder: str) -> list[float]:
    """Fit a fresh block and return the seconds of its steps."""
    watch = Stopwatch()
    callbacks: list[L.Callback] = [watch]
    if trio:
        calibration = CalibrationSettings(safety_samples=1, task_samples=1, batch_size=1)
        safety = DataLoader(Hidden(1, 64, options.hidden, getattr(torch, options.dtype)))
        partition = FocusPartition(probe_steps=1, safety_data=safety, task_data=safety, calibration=calibration)
        callbacks = [partition, MaskedFreezing(), OrthogonalProjection(), watch]
    trainer = L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-true" if options.dtype == "bfloat16" else "32-true",
        max_steps=options.steps + 2,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Hidden(options.samples * (options.steps + 2), options.tokens, options.hidden, getattr(torch, options.dtype))
    trainer.fit(OneBlock(options), DataLoader(data, batch_size=options.samples))
    return watch.seconds


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
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats):
            for trio in (False, True):
                steps = run(options, trio, folder)
                seconds[trio] += steps
                name = "trio" if trio else "plain"
                print(f"turn {number + 1}, {name}: shortest {min(steps):.3f} s", file=sys.stderr, flush=True)
    plain, with_trio = (min(seconds[trio]) for trio in (False, True))
    medians = [statistics.median(seconds[trio]) for trio in (False, True)]
    device = torch.device(options.device)
    rates = ceilings(device, 2048)
    least = floor(options, rates) / plain
    print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}\n")
    print("| tuning | tokens a step | plain step | with the trio | overhead | of the medians | floor |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {options.tuning} | {options.samples * options.tokens} | {plain:.3f} s | {with_trio:.3f} s "
        f"| {100 * (with_trio / plain - 1):.1f} % | {100 * (medians[1] / medians[0] - 1):.1f} % | {100 * least:.1f} % |"
    )
    print(f"\nBest rates: {options.dtype} {rates[options.dtype] / 1e9:.0f}, copy {rates['copy'] / 1e9:.0f} G/s.")


if __name__ == "__main__":
    main()
