"""How the cost of partition and fusion grows: decoder blocks, width, calibration tokens, LoRA rank.

    python benchmarks/growth.py --output docs/figures

One axis is varied at a time from a base of 2 blocks, width 1024, 4096 calibration tokens, rank 32. Each point is a
process of its own, the best of several runs; the exponent is the slope of a straight line through the logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from machine import command, commit, device_name, memory_now, memory_peak, synchronise
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from hpa_lightning import functional as F
from hpa_lightning.calibration import inverse_hessian_diagonals
from hpa_lightning.callbacks import RetentionSettings
from hpa_lightning.modules.lora import LoraSettings, add_lora
from hpa_lightning.modules.tuned_linear import find_tuned_linears

BASE = {"blocks": 2, "width": 1024, "tokens": 4096, "rank": 32}
AXES = {
    "blocks": [1, 2, 4, 8],
    "width": [512, 1024, 2048, 4096],
    "tokens": [1024, 2048, 4096, 8192, 16384, 32768],
    "rank": [8, 32, 128, 512],
}
LABELS = {"blocks": "decoder blocks", "width": "hidden size", "tokens": "calibration tokens", "rank": "LoRA rank"}
SAMPLE = 512  # tokens


def measure(sizes: dict[str, int], device: torch.device) -> dict[str, float]:
    """Seconds and extra bytes of the calibration (without the forward passes) and of the fusion."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=sizes["width"],
        intermediate_size=sizes["width"] * 11008 // 4096,
        num_hidden_layers=sizes["blocks"],
        num_attention_heads=sizes["width"] // 128,
    )
    with device:
        model = LlamaModel(config).eval()
    add_lora(model, LoraSettings(rank=sizes["rank"]))
    blocks, linears = find_tuned_linears(nn.ModuleDict({"model": model}))
    with torch.no_grad():
        for linear in linears:
            linear.trained.normal_(std=0.02)
            linear.factors.lora_b.normal_(std=0.02)  # type: ignore[attr-defined]
    batches = [torch.randint(0, 1000, (1, SAMPLE), device=device) for _ in range(sizes["tokens"] // SAMPLE)]

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return model(batch, use_cache=False).last_hidden_state

    def timed(function: object) -> tuple[float, object]:
        synchronise(device)
        start = time.perf_counter()
        result = function()  # type: ignore[operator]
        synchronise(device)
        return time.perf_counter() - start, result

    with torch.no_grad():
        forward(batches[0])
        passes = min(timed(lambda: [forward(batch) for batch in batches])[0] for _ in range(2))
        before = memory_now(device)
        calibration, diagonals = timed(
            lambda: inverse_hessian_diagonals(
                forward, batches, blocks, {linear.name: linear.module for linear in linears}
            )
        )

        def fuse() -> None:
            settings = RetentionSettings()
            for linear in linears:
                both = (diagonals[linear.name],) * 2  # type: ignore[index]
                before, place = linear.before(), (linear.layer, len(blocks), settings)
                fused, _ = F.harmonious_fusion(before, linear.after(), *both, *place, in_place=True)
                linear.write_(fused)

        fusion, _ = timed(fuse)
    return {"calibration": calibration - passes, "fusion": fusion, "bytes": memory_peak(device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for growth.svg")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.only:
        print(json.dumps(measure(json.loads(options.only), device)))
        return
    points: dict[str, list[dict[str, float]]] = {}
    for axis, values in AXES.items():
        for value in values:
            runs = []
            for _ in range(options.repeats):
                only = json.dumps({**BASE, axis: value})
                arguments = [sys.executable, __file__, "--device", options.device, "--only", only]
                done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            point = {key: min(run[key] for run in runs) for key in runs[0]}
            points.setdefault(axis, []).append({"value": value, **point})
            print(f"{axis} {value}: {point}", file=sys.stderr, flush=True)
    print(f"\n{device_name(device)}, commit {commit()}\n{command()}\n")
    print("| | calibration | fusion | extra memory | exponents: calibration, fusion, memory |\n|---|---|---|---|---|")
    for axis, line in points.items():
        slopes = [exponent(line, key) for key in ("calibration", "fusion", "bytes")]
        for point in line:
            last = ", ".join(f"{slope:.2f}" for slope in slopes) if point is line[-1] else ""
            print(
                f"| {LABELS[axis]} {point['value']} | {point['calibration']:.2f} s | {point['fusion']:.2f} s "
                f"| {point['bytes'] / 1e9:.2f} GB | {last} |"
            )
    if options.output:
        draw(points, options.output / "growth.svg")


def exponent(line: list[dict[str, float]], key: str) -> float:
    """Slope of the logarithms; not a number where a value is not positive."""
    values, sizes = [point[key] for point in line], [point["value"] for point in line]
    if min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def draw(points: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time above, memory below, one column for each axis, all logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(points), figsize=(13, 6.2), sharex="col", sharey="row", layout="constrained"
    )
    rows = (("calibration", "o", 1.0), ("fusion", "s", 1.0)), (("bytes", "^", 1e9),)
    for column, (axis, line) in enumerate(points.items()):
        values = [point["value"] for point in line]
        for panel, lines in zip(panels[:, column], rows, strict=True):
            for key, marker, unit in lines:
                label = f"{key.replace('bytes', 'extra memory')}, exponent {exponent(line, key):.2f}"
                panel.plot(values, [point[key] / unit for point in line], marker=marker, label=label)
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            panel.legend(fontsize=8)
            panel.grid(alpha=0.3)
        panels[1, column].set_xlabel(LABELS[axis])
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("GB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
