"""Partition and fusion of one LLaVA-7B decoder block, against a plain implementation and against the machine.

    python benchmarks/block.py                                   # the paper's calibration sizes
    python benchmarks/block.py --task-samples 16 --repeats 1     # a slow machine

Random weights, LoRA of rank 128 on all seven linear layers, activations from a real forward. The implementations run in
turn, after a small block to warm up, and the best of each one's runs counts. On a CPU every run is a process of its
own, whose memory can be told; on CUDA the allocator tells it. Memory is the most that a run adds to the block's weights
and the tokens, forward passes included. With the paper's sizes most of it is the hidden states of all samples, of which
plain holds two sets, as the public code does, and ours one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import plain
import torch
from machine import ceilings, command, commit, default_dtype, device_name, memory_now, memory_peak, synchronise
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks import RetentionSettings
from hpa_lightning.functional import LoraUpdate, harmonious_fusion

HIDDEN, INNER, HEADS = 4096, 11008, 32
RANK, SCALING, PERCENT, ALPHA = 128, 2.0, 10.0, 0.6
SAMPLED = 4099
SETTINGS = RetentionSettings(p_min=PERCENT, p_max=PERCENT, alpha_min=ALPHA, alpha_max=ALPHA)


class Block:
    """One decoder block in a model without any other, its adapters and its calibration inputs."""

    def __init__(self, options: argparse.Namespace, warm_up: bool = False) -> None:
        shrink = 16 if warm_up else options.shrink
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        dtype = getattr(torch, options.dtype)
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=HIDDEN // shrink,
            intermediate_size=INNER // shrink,
            num_hidden_layers=1,
            num_attention_heads=HEADS // shrink,
            num_key_value_heads=HEADS // shrink,
        )
        with self.device:
            self.model = LlamaModel(config).to(dtype).eval().requires_grad_(False)
        self.block = self.model.layers[0]
        self.linears = {name: module for name, module in self.block.named_modules() if isinstance(module, nn.Linear)}
        generator = torch.Generator(self.device).manual_seed(1)
        self.factors = {
            name: (
                0.02 * torch.randn(RANK, linear.in_features, generator=generator, device=self.device),
                0.02 * torch.randn(linear.out_features, RANK, generator=generator, device=self.device),
            )
            for name, linear in self.linears.items()
        }
        sizes = {"safety": options.safety_samples, "task": options.task_samples}
        sizes = dict.fromkeys(sizes, 2) if warm_up else sizes
        self.batches = {
            what: [
                torch.randint(0, 1000, (1, options.tokens), generator=generator, device=self.device)
                for _ in range(size)
            ]
            for what, size in sizes.items()
        }

    def run(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).last_hidden_state


Diagonals = dict[str, dict[str, Tensor]]


def ours(block: Block) -> Diagonals:
    diagonals = {
        what: inverse_hessian_diagonals(block.run, batches, [block.block], block.linears)
        for what, batches in block.batches.items()
    }
    for name, linear in block.linears.items():
        adapter = LoraUpdate(*block.factors[name], SCALING)
        safety, task = (diagonals[what][name] for what in ("safety", "task"))
        harmonious_fusion(linear.weight, adapter, safety, task, 1, 1, SETTINGS, in_place=True)
    return diagonals


def simple(block: Block) -> Diagonals:
    with torch.no_grad():
        diagonals = {
            what: plain.inverse_diagonals(block.block, block.linears, batches, block.run)
            for what, batches in block.batches.items()
        }
        for name, linear in block.linears.items():
            linear.weight.copy_(
                plain.fuse(
                    linear.weight,
                    *block.factors[name],
                    SCALING,
                    diagonals["safety"][name],
                    diagonals["task"][name],
                    PERCENT,
                    ALPHA,
                )
            )
    return diagonals


def forward(block: Block) -> Diagonals:
    with torch.no_grad():
        for batches in block.batches.values():
            for batch in batches:
                block.run(batch)
    return {}


IMPLEMENTATIONS = {"plain": simple, "ours": ours, "forward": forward}


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One run of one implementation in this process."""
    IMPLEMENTATIONS[name](Block(options, warm_up=True))
    block = Block(options)
    with torch.no_grad():
        block.run(block.batches["safety"][0][:, :8])
    synchronise(block.device)
    before, start = memory_now(block.device), time.perf_counter()
    diagonals = IMPLEMENTATIONS[name](block)
    synchronise(block.device)
    seconds = time.perf_counter() - start
    # The distance has no factor in common with the widths, so that all columns have a part.
    weights = torch.cat([linear.weight.flatten()[::SAMPLED].float() for linear in block.linears.values()])
    return {
        "seconds": seconds,
        "bytes": memory_peak(block.device) - before,
        "diagonals": {
            f"{what} {name}": diagonal[::31].tolist() for what, of in diagonals.items() for name, diagonal in of.items()
        },
        "weights": weights.tolist(),
    }


def measure_apart(name: str) -> dict[str, Any]:
    """The same in a process of its own."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def floor(options: argparse.Namespace, rates: dict[str, float]) -> dict[str, float]:
    """Seconds that the operations and bytes take at the machine's best rates, without the forward passes."""
    products = rates["bfloat16" if options.dtype == "bfloat16" and "bfloat16" in rates else "float32"]
    parts = dict.fromkeys(("sums", "factors", "fusion"), 0.0)
    hidden, inner = HIDDEN // options.shrink, INNER // options.shrink
    for samples in (options.safety_samples, options.task_samples):
        n = samples * options.tokens
        for c in (hidden, hidden, hidden, inner):
            sums = n * c**2 / products
            factor = c**3 / 3 / rates["cholesky"] + c**3 / 3 / rates["float64"]
            of_rows = 2 * n**2 * c / rates["float64"] + n**3 / 3 / rates["cholesky"]  # Woodbury
            if sums + factor < of_rows:
                parts["sums"] += sums
                parts["factors"] += factor
            else:
                parts["factors"] += of_rows
    width = {"bfloat16": 2, "float32": 4}[options.dtype]
    for rows, columns in 4 * [(hidden, hidden)] + 2 * [(inner, hidden)] + [(hidden, inner)]:
        # Read for the projection, read and written for the result; two products with the adapter.
        parts["fusion"] += 3 * rows * columns * width / rates["copy"]
        parts["fusion"] += 4 * rows * columns * RANK / products
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--safety-samples", type=int, default=8)
    parser.add_argument("--task-samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=640, help="tokens of a sample, image tokens included")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shrink", type=int, choices=[1, 2, 4, 8, 16], default=1, help="divide the block's widths")
    parser.add_argument("--together", action="store_true", help="all runs in one process, on a CPU too; no memory then")
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or default_dtype(options.device)
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    device = torch.device(options.device)
    together = options.together or device.type == "cuda"
    rates = ceilings(device, 512 if options.shrink > 1 else None)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in IMPLEMENTATIONS}
    for number in range(options.repeats):
        for name in IMPLEMENTATIONS:
            runs[name].append(measure(options, name) if together else measure_apart(name))
            print(f"run {number + 1}, {name}: {shown(runs[name][-1]['seconds'])}", file=sys.stderr, flush=True)
    best = {name: min(run["seconds"] for run in repeated) for name, repeated in runs.items()}
    memory = {name: min(run["bytes"] for run in repeated) for name, repeated in runs.items()}
    measured = not together or device.type == "cuda"
    extra = {name: f"{size / 1e9:.2f} GB" if measured else "not measured" for name, size in memory.items()}
    less = f"{memory['ours'] / memory['plain']:.2f} of it" if measured else ""
    parts = floor(options, rates)
    least = sum(parts.values())
    apart = compare(runs)
    print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}\n")
    print("| | time, the forward passes included | without them | extra memory |\n|---|---|---|---|")
    for name in ("plain", "ours"):
        print(f"| {name} | {shown(best[name])} | {shown(best[name] - best['forward'])} | {extra[name]} |")
    both, without = best["plain"] / best["ours"], (best["plain"] - best["forward"]) / (best["ours"] - best["forward"])
    print(
        f"| ratio | {both:.1f} times faster | {without:.1f} times | {less} |\n"
        f"| the forward passes alone | {shown(best['forward'])} | | {extra['forward']} |"
    )
    print(
        f"\nFloor of the part without the forward passes: {shown(least)} ("
        + ", ".join(f"{name} {shown(seconds)}" for name, seconds in parts.items())
        + f"); ours takes "
        f"{(best['ours'] - best['forward']) / least:.2f} times as long."
    )
    print("Best rates: " + ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in rates.items()) + ".")
    print(
        f"The two differ by {apart['diagonals']:.1e} in diag(H^-1), in {apart['weights']:.1e} of the sampled weights."
    )


def shown(seconds: float) -> str:
    """In seconds from one on, in milliseconds below."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How far the implementations are from each other: largest relative difference, share of other weights."""
    (left, right) = (runs[name][0] for name in ("plain", "ours"))
    apart = max(
        abs(one - other) / other
        for name in left["diagonals"]
        for one, other in zip(left["diagonals"][name], right["diagonals"][name], strict=True)
    )
    pairs = list(zip(left["weights"], right["weights"], strict=True))
    return {"diagonals": apart, "weights": sum(abs(one - other) > 1e-5 for one, other in pairs) / len(pairs)}


if __name__ == "__main__":
    main()
