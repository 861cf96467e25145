"""The main job on the embedded benchmark: sequential tuning against both modes of HPA, one table."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from transformers.utils.logging import disable_progress_bar

from hpa_lightning.callbacks import (
    CalibrationSettings,
    FocusPartition,
    HarmoniousFusion,
    MaskedFreezing,
    OrthogonalProjection,
    RetentionSettings,
    SequentialTuning,
    TaskEvaluation,
)
from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.modules import NanoModule
from hpa_lightning.report import method_table, write_report
from hpa_lightning.results import RunResults
from hpa_lightning.run_folder import check_new_run

# Chosen on development seeds 0 to 2, see docs/nano.md.
NANO_CALIBRATION = CalibrationSettings(safety_samples=128)
"""As many safety as task samples; the paper's 8 are few tokens here, for layers of 256 and 768 columns."""
NANO_POST_TRAINING = RetentionSettings(p_min=7.0, p_max=18.0)
"""A little more than the paper's 5 to 15 %."""
NANO_IN_TRAINING = RetentionSettings(p_min=72.0, p_max=72.0)
"""Much more: training goes around a few frozen columns."""


def _in_training(
    calibration: CalibrationSettings | None = None, retention: RetentionSettings | None = None
) -> list[L.Callback]:
    return [FocusPartition(calibration=calibration, retention=retention), MaskedFreezing(), OrthogonalProjection()]


def _post_training(
    calibration: CalibrationSettings | None = None, retention: RetentionSettings | None = None
) -> list[L.Callback]:
    return [HarmoniousFusion(calibration=calibration, retention=retention)]


METHODS: dict[str, tuple[str, Callable[[], list[L.Callback]]]] = {
    "sequential": ("Sequential tuning", list),
    "in-training": ("HPA, in-training", partial(_in_training, NANO_CALIBRATION, NANO_IN_TRAINING)),
    "post-training": ("HPA, post-training", partial(_post_training, NANO_CALIBRATION, NANO_POST_TRAINING)),
    "in-training-paper": ("HPA, in-training, the paper's settings", _in_training),
    "post-training-paper": ("HPA, post-training, the paper's settings", _post_training),
}
"""Name on the command line -> name in tables, and the callbacks beside SequentialTuning and TaskEvaluation."""

DEMO_METHODS = ("sequential", "in-training", "post-training")

_INTRODUCTION = """\
A small multimodal model that was taught to refuse harmful requests is tuned on six visual tasks, one after another.
AP           average performance: share of correct answers over all six tasks after the last one   (higher is better)
BWT          backward transfer: how much the earlier tasks have changed since they were learned    (higher is better)
MASR         mean attack success rate: share of harmful inputs that are answered, over three sets  (lower is better)
DASR         rise of MASR over the aligned model that everything started from                      (lower is better)
over-refusal share of harmless, dangerous-sounding inputs that are refused                         (lower is better)
All in percent; intervals are 95 % over seeds where there are several."""


def run_demo(output: Path, seeds: Sequence[int], methods: Sequence[str]) -> str:
    """Run sequential tuning and both modes of HPA on the embedded benchmark and print one table."""
    print(_INTRODUCTION, flush=True)
    _show_progress_only()
    folders: list[Path] = []
    try:
        for folder in (output / method / f"seed_{seed}" for method in methods for seed in seeds):
            check_new_run(folder, logs=True)
    except ValueError as error:
        raise SystemExit(f"hpa-lightning demo: {error}") from error
    for method in methods:
        for seed in seeds:
            folder = output / method / f"seed_{seed}"
            start = time.monotonic()
            print(f"\n{METHODS[method][0]}, seed {seed}: tuning on six tasks", flush=True)
            run_nano(method, seed, folder)
            summary = RunResults.from_file(folder).summary()
            print(
                f"  {time.monotonic() - start:.0f} s, AP {100 * summary['AP']:.1f}, BWT {100 * summary['BWT']:.1f}, "
                f"MASR {100 * summary['MASR']:.1f}",
                flush=True,
            )
            folders.append(folder)
    files = write_report(folders, output / "report")
    table = method_table([RunResults.from_file(folder) for folder in folders]).text()
    print(f"\n{table}\n\nThe page with plots: {files['html']}")
    return table


def _show_progress_only() -> None:
    """Print the callbacks' progress lines, not Lightning's and Hugging Face's notices about hardware and loaders."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: record.getMessage().startswith(("Aligned model", "After ", "Task ")))
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    disable_progress_bar()


def run_nano(method: str, seed: int, folder: Path) -> None:
    """Fit the six tasks of the embedded benchmark with one method and leave the results in ``folder``."""
    name, callbacks = METHODS[method]
    fit_nano(seed, [*callbacks(), TaskEvaluation(method=name)], folder)


def fit_nano(seed: int, callbacks: Sequence[L.Callback], folder: Path) -> None:
    """Tune the embedded model on its six tasks, one after another, with ``callbacks`` beside SequentialTuning."""
    L.seed_everything(seed, workers=True, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[SequentialTuning(seed=seed), *callbacks],
        max_epochs=-1,  # the stream sets it
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
    )
    trainer.fit(NanoModule(), datamodule=NanoDataModule(seed=seed))
