"""Run by modules/test_preference.py: a stream that ends with pairs, in one process or in two; saves how it ended.

pairs_script.py FOLDER DEVICES
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support.pairs import quiet, stream_with_pairs
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import SequentialTuning
from hpa_lightning.modules import LoraSettings, PreferenceModule, PreferenceSettings


class Margins(L.Callback):
    """What is logged of every batch of pairs."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if "rewards/margins" in trainer.callback_metrics:
            self.seen.append(float(trainer.callback_metrics["rewards/margins"]))


def main(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    model, processor = tiny_llava()
    torch.manual_seed(0)
    tuned = PreferenceModule.from_objects(
        model,
        processor,
        lora=LoraSettings(rank=2, alpha=4.0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        preference=PreferenceSettings(reference_cache=str(folder / f"cache{devices}")),
    )
    margins = Margins()
    data = stream_with_pairs(processor, train_batch_size=4 // devices)
    strategy: Any = {"strategy": "ddp", "devices": 2} if devices == 2 else {"devices": 1}
    trainer = quiet(folder, [SequentialTuning(), margins], max_epochs=-1, **strategy)
    trainer.fit(tuned, data)
    if trainer.is_global_zero:
        torch.save({"weights": tuned.state_dict(), "margins": margins.seen}, folder / f"{devices}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
