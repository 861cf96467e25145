"""What sketches cost against whole Hessians, at the layer inputs of a LLaVA-7B decoder block.

    python benchmarks/hpa_plus.py --shrink 4 --tokens 4096                    # a CPU: widths divided by four
    python benchmarks/hpa_plus.py --tokens 81920                              # a GPU: 128 samples of 640 tokens
    python benchmarks/hpa_plus.py --growth                                    # one axis at a time, in an own table

One run in one process: random inputs whose energies decay as `1 / i`, no forward passes; drawing them does not count.
For each distinct input of a block (three of 4096 columns and one of 11008, divided by `--shrink`) `sketch` streams
the tokens and takes the basis of null-space projection, `exact` sums the whole Hessian and takes its eigenvectors,
`hpa` sums it and takes diag(H^-1). The floor is the operations at the machine's best rates. Memory and checkpoint
bytes are counted for all 32 blocks of a 7B model: earlier tasks and bases, at most. Growth is that of sketches: the
seconds in which the inputs of some blocks are taken in and their bases made, those of the projection after a step
(adapters, and whole weights), and the bytes, from a base of 2 blocks of width 1024, 4096 tokens, rank 64; the
exponent is the slope of the logarithms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from machine import (
    best_seconds,
    ceilings,
    command,
    commit,
    count_processor_time,
    default_dtype,
    device_name,
    synchronise,
)
from torch import Tensor

from hpa_lightning.functional import (
    HessianAccumulator,
    InputSketch,
    dominant_subspace,
    half_precision_basis,
    null_space_projection_,
)

WIDTHS = (4096, 4096, 4096, 11008)
READERS = (3, 1, 2, 1)  # layers that read each input
BLOCKS = 32
BATCH = 640
ENERGY = 0.7
BASE = {"blocks": 2, "width": 1024, "tokens": 4096, "rank": 64}
AXES = {
    "blocks": [1, 2, 4, 8],
    "width": [512, 1024, 2048, 4096],
    "tokens": [1024, 4096, 16384],
    "rank": [16, 64, 256],
}


class Inputs:
    """Tokens of one layer input, in batches of `(640, columns)` that are drawn anew in every pass.

    Args:
        columns: of the input.
        options: ``device``, ``dtype`` and how many ``tokens``.
        keep: draw once, and hold all batches.

    Attributes:
        seconds: what drawing has taken so far.
    """

    def __init__(self, columns: int, options: argparse.Namespace, keep: bool = False) -> None:
        self.columns, self.device, self.dtype = columns, torch.device(options.device), getattr(torch, options.dtype)
        self.tokens = options.tokens
        self.seconds = 0.0
        self.kept = list(self._drawn()) if keep else None

    def __iter__(self) -> Iterator[Tensor]:
        return self._drawn() if self.kept is None else iter(self.kept)

    def _drawn(self) -> Iterator[Tensor]:
        generator = torch.Generator(self.device).manual_seed(self.columns)
        scale = torch.arange(1, self.columns + 1, device=self.device) ** -0.5
        for first in range(0, self.tokens, BATCH):
            synchronise(self.device)
            start = time.perf_counter()
            count = min(BATCH, self.tokens - first)
            rows = torch.randn(count, self.columns, generator=generator, device=self.device)
            rows = rows.mul_(scale).to(self.dtype)
            synchronise(self.device)
            self.seconds += time.perf_counter() - start
            yield rows


def sketch(inputs: Inputs, rank: int) -> Tensor:
    """The basis by a sketch."""
    found = InputSketch(inputs.columns, min(rank, inputs.columns))
    for part in inputs:
        found.update(part)
    return half_precision_basis(found.basis(ENERGY, rank))[0].to(inputs.device)


def exact(inputs: Inputs, rank: int) -> Tensor:
    """The basis by the whole Hessian."""
    hessian = HessianAccumulator(inputs.columns)
    for part in inputs:
        hessian.update(part)
    return dominant_subspace(hessian.hessian().float(), ENERGY)


def hpa(inputs: Inputs, rank: int) -> Tensor:
    """HPA's own statistics."""
    hessian = HessianAccumulator(inputs.columns)
    for part in inputs:
        hessian.update(part)
    return hessian.inverse_diagonal(release=True)


WAYS: dict[str, Callable[[Inputs, int], Tensor]] = {"sketch": sketch, "exact": exact, "hpa": hpa}


def floor(widths: list[int], tokens: int, rank: int, rates: dict[str, float]) -> dict[str, float]:
    """Seconds of each way's operations at the best rates; an eigendecomposition counted as `9 c^3` in float64."""
    result = dict.fromkeys(WAYS, 0.0)
    for c in widths:
        shrinkings = tokens / rank
        result["sketch"] += shrinkings * (12 * rank**2 * c / rates["float32"] + 9 * (2 * rank) ** 3 / rates["float64"])
        sums = tokens * c**2 / rates["float32"]
        result["exact"] += sums + 9 * c**3 / rates["float64"]
        result["hpa"] += sums + c**3 / 3 / rates["cholesky"] + c**3 / 3 / rates["float64"]
    return result


def held_bytes(rank: int, widths: tuple[int, ...] = WIDTHS, blocks: int = BLOCKS) -> dict[str, tuple[int, int]]:
    """Way -> bytes in memory and in a checkpoint for all blocks: earlier tasks, and as many directions as the rank.

    Of sketches the triangular matrix that rounds the directions for a checkpoint stays beside them, whatever the rule
    that chooses them. With a budget the exact form keeps all directions.
    """
    squares = sum(c * c for c in widths)
    kept = sum((2 * min(rank, c) + 8) * c for c in widths)
    directions = sum(min(rank, c) * c for c in widths)
    turns = sum(min(rank, c) ** 2 for c in widths)
    return {
        "sketch": (blocks * (kept + 4 * directions + 4 * turns), blocks * (kept + 2 * directions)),
        "exact, energy": (blocks * 4 * (squares + directions), blocks * 4 * (squares + directions)),
        "exact, a budget": (blocks * 8 * squares, blocks * 8 * squares),
    }


def projection_seconds(bases: list[Tensor], lora_rank: int) -> float:
    """Seconds in which the adapters of one block leave their bases after a step."""
    device = bases[0].device
    factors = [torch.randn(lora_rank, basis.shape[0], device=device) for basis in bases]

    def step() -> None:
        for factor, basis, layers in zip(factors, bases, READERS, strict=True):
            for _ in range(layers):
                null_space_projection_(factor, None, basis)

    return best_seconds(step, device, repeats=3)


def full_projection_seconds(bases: list[Tensor], widths: list[int]) -> float:
    """Seconds in which the whole weights of one block leave their bases after a step."""
    device, hidden, inner = bases[0].device, widths[0], widths[-1]
    outputs = {0: (hidden, hidden, hidden), 1: (hidden,), 2: (inner, inner), 3: (hidden,)}
    pairs = []
    for number, basis in enumerate(bases):
        for rows in outputs[number]:
            before = torch.randn(rows, len(basis), device=device)
            pairs.append((before + 1e-3 * torch.randn_like(before), before, basis))

    def step() -> None:
        for weight, before, basis in pairs:
            null_space_projection_(weight, before, basis)

    return best_seconds(step, device, repeats=3)


def growth_point(blocks: int, width: int, tokens: int, rank: int, options: argparse.Namespace) -> list[float]:
    """Seconds of calibration, of a step's projection (adapters, whole weights), and bytes in memory."""
    widths = [width, width, width, 11 * width // 4]
    few = argparse.Namespace(device=options.device, dtype=options.dtype, tokens=tokens)
    inputs = [Inputs(columns, few, keep=True) for columns in widths]
    device = torch.device(options.device)

    def calibrate() -> list[Tensor]:
        bases: list[Tensor] = []
        for _ in range(blocks):
            bases = [sketch(one, rank) for one in inputs]
        return bases

    bases = calibrate()
    kept, _ = held_bytes(rank, tuple(widths), blocks)["sketch"]
    return [
        best_seconds(calibrate, device, repeats=2),
        blocks * projection_seconds(bases, options.lora_rank),
        blocks * full_projection_seconds(bases, widths),
        float(kept),
    ]


def growth(options: argparse.Namespace) -> None:
    """Print one table with a line for each point of each axis."""
    print("| | calibration | a LoRA step | a step of all weights | memory | exponents |\n|---|---|---|---|---|---|")
    for axis, values in AXES.items():
        points: list[list[float]] = []
        for value in values:
            points.append(growth_point(**(BASE | {axis: value}), options=options))
            seconds, lora, full, held = points[-1]
            shown = ""
            if value == values[-1]:
                slopes = [np.polyfit(np.log(values), np.log(column), 1)[0] for column in zip(*points, strict=True)]
                shown = ", ".join(f"{slope:.2f}" for slope in slopes)
            times = f"{seconds:.2f} s | {1000 * lora:.1f} ms | {1000 * full:.0f} ms"
            print(f"| {axis} {value} | {times} | {held / 1e6:.1f} MB | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--ranks", type=int, nargs="+", default=[192, 384], help="the first one for the step")
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--shrink", type=int, choices=[1, 2, 4, 8, 16, 32], default=1, help="divide the block's widths")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--growth", action="store_true", help="print the table of growth alone")
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of the processor, where others use it too"
    )
    options = parser.parse_args()
    if options.processor_time:
        count_processor_time()
    options.dtype = options.dtype or default_dtype(options.device)
    device = torch.device(options.device)
    if options.growth:
        print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}\n")
        growth(options)
        return
    widths = [c // options.shrink for c in WIDTHS]
    rates = ceilings(device, 512 if options.shrink > 1 else None)
    print(f"\n{device_name(device)}, {options.dtype}, commit {commit()}\n{command()}\n")
    print(f"One block, widths {widths}, {options.tokens} tokens, without the forward passes.\n")
    print("| way | rank | calibration | floor | a LoRA step of the block | a step of all weights |")
    print("|---|---|---|---|---|---|", flush=True)
    for way in options.ways:
        for rank in options.ranks if way == "sketch" else options.ranks[:1]:
            seconds, bases = 0.0, []
            for columns in widths:
                inputs = Inputs(columns, options)
                synchronise(device)
                start = time.perf_counter()
                bases.append(WAYS[way](inputs, rank))
                synchronise(device)
                seconds += time.perf_counter() - start - inputs.seconds
            least = floor(widths, options.tokens, rank, rates)[way]
            step = " | "
            if way != "hpa":
                full = full_projection_seconds(bases, widths)
                step = f"{1000 * projection_seconds(bases, options.lora_rank):.1f} ms | {1000 * full:.0f} ms"
            shown = str(rank) if way == "sketch" else ""
            print(f"| {way} | {shown} | {seconds:.2f} s | {least:.2f} s | {step} |", flush=True)
    print("\nBest rates: " + ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in rates.items()) + ".")
    print("\n| all 32 blocks of LLaVA-7B, at most | memory | checkpoint |\n|---|---|---|")
    for rank in options.ranks:
        for way, (memory, saved) in held_bytes(rank).items():
            print(f"| {way}, rank {rank} | {memory / 1e9:.2f} GB | {saved / 1e9:.2f} GB |")


if __name__ == "__main__":
    main()
