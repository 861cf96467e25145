"""Samples per second of the stream (JPEG to padded batch) against what a training step takes in.

    python benchmarks/data_path.py --step-seconds 0.4 --step-samples 8

Photographs of 640 by 480 pixels, the image processor of LLaVA-1.5, batches of 8. `--step-seconds` is what a step of
your model takes (`benchmarks/steps.py` times one block, a 7B model has 32); without it only the stream is timed. It
keeps up where the ratio is above 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from llava import processor, write_data
from machine import command, commit, device_name

from hpa_lightning.data import CVITDataModule, Task


def rate(file: Path, workers: int, batch_size: int, repeats: int) -> float:
    """Samples per second, the start of the workers left out: best of several passes."""
    task = Task("task", train=str(file), test=str(file), image_folder=str(file.parent))
    stream = CVITDataModule(
        [task], processor=processor(), train_batch_size=batch_size, num_workers=workers, allow_overlap=True
    )
    stream.prepare_data()
    stream.setup("fit")
    best = 0.0
    for _ in range(repeats):
        loader = iter(stream.train_dataloader())
        batch, count = next(loader), 0
        start = time.perf_counter()
        for batch in loader:
            count += len(batch["input_ids"])
        best = max(best, count / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--step-seconds", type=float, help="of one training step of the model")
    parser.add_argument("--step-samples", type=int, default=8, help="samples in that step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = write_data(Path(folder), options.samples, "task", "A field of colours.")
        rates = {n: rate(file, n, options.batch_size, options.repeats) for n in options.workers}
    needed = options.step_samples / options.step_seconds if options.step_seconds else None
    print(f"\n{device_name(torch.device('cpu'))}, commit {commit()}\n{command()}\n")
    print("| workers | samples per second | for each worker | times what a step takes in |\n|---|---|---|---|")
    for workers, samples in rates.items():
        against = f"{samples / needed:.1f}" if needed else ""
        print(f"| {workers} | {samples:.0f} | {samples / max(workers, 1):.0f} | {against} |")


if __name__ == "__main__":
    main()
