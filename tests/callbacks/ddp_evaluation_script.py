"""Run by test_ddp.py in one and in two processes: the stream with TaskEvaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_stream import module, stream, trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation


def main(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    data = stream(evaluated=True)
    data.eval_batch_size = 1  # three batches a set: one process gets two of them, the other one
    fit = trainer(
        folder,
        [SequentialTuning(), TaskEvaluation()],
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    tuned, answered = module(), []
    generate = tuned.generate
    tuned.generate = lambda batch, **options: answered.append(len(batch["ids"])) or generate(batch, **options)
    fit.fit(tuned, data)
    (folder / f"answered{fit.global_rank}").write_text(str(sum(answered)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
