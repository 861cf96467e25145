"""What is read from a trainer: all of its loggers, and the checkpoint that a fit goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.foreign_module import ForeignModule, foreign_module, quiet_trainer, token_loader
from support.method_fits import OPTIMIZERS, calibration_data
from support.method_registry import METHODS
from torch.utils.data import DataLoader

from hpa_lightning.callbacks.task import TaskCallback


def test_every_logger_gets_the_figures(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name) for name in ("one", "two")]
    callbacks = METHODS["post_training"](calibration_data())
    trainer = quiet_trainer(tmp_path, callbacks, max_epochs=1, logger=loggers)
    trainer.fit(foreign_module(OPTIMIZERS["sgd_momentum"], lora=True), token_loader(1, 8))
    written = [Path(logger.log_dir, "metrics.csv").read_text() for logger in loggers]
    assert "retention/" in written[0] and written[0] == written[1]


class Tunable(ForeignModule):
    lr, batch_size = 0.01, 4

    def train_dataloader(self) -> DataLoader:
        return token_loader(1, 8, self.batch_size)


FINDERS = {
    "rate": lambda: LearningRateFinder(num_training_steps=2),
    "batch": lambda: BatchSizeFinder(mode="binsearch", init_val=4, max_trials=1, steps_per_trial=1),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("finder", FINDERS)
def test_a_finder_s_own_checkpoint_resumes_nothing(finder: str, first: bool, tmp_path: Path) -> None:
    """It saves the fit before its trials and loads that file afterwards."""
    resumed: list[bool] = []

    class Watches(TaskCallback):
        def on_fit_begins(self, trainer: object, resumed_: bool) -> None:  # type: ignore[override]
            resumed.append(resumed_)

    callbacks: list[Callback] = [Watches(), *METHODS["linear_merging"]({})]
    callbacks.insert(0 if first else len(callbacks), FINDERS[finder]())
    module = Tunable(foreign_module(OPTIMIZERS["sgd_momentum"], lora=True).model, OPTIMIZERS["sgd_momentum"])
    quiet_trainer(tmp_path, callbacks, max_epochs=1).fit(module)
    assert resumed == [False]


@pytest.mark.parametrize("finder", FINDERS)
def test_a_finder_on_a_resumed_fit_is_refused(finder: str, tmp_path: Path) -> None:
    """Lightning leaves the checkpoint's training state out then: the fit would begin anew on trained weights."""

    def fit(*more: Callback, checkpoint: Path | None = None) -> None:
        module = Tunable(foreign_module(OPTIMIZERS["sgd_momentum"], lora=True).model, OPTIMIZERS["sgd_momentum"])
        trainer = quiet_trainer(
            tmp_path, [*METHODS["linear_merging"]({}), *more], max_epochs=2, enable_checkpointing=True
        )
        trainer.fit(module, ckpt_path=checkpoint, weights_only=False)

    fit(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    fit(checkpoint=tmp_path / "epoch=0.ckpt")
    used = FINDERS[finder]()
    refused = pytest.raises(MisconfigurationException, match=r"A finder of .* leaves out the training state of")
    with pytest.MonkeyPatch.context() as patched, refused:
        patched.setattr(used, "on_fit_start", lambda *_: pytest.fail("the finder's trials have begun"))
        fit(used, checkpoint=tmp_path / "epoch=0.ckpt")
    with refused:  # of a class of one's own, which might run later
        fit(derived(used), checkpoint=tmp_path / "epoch=0.ckpt")


def derived(finder: Callback) -> Callback:
    finder.__class__ = type(f"Own{type(finder).__name__}", (type(finder),), {})
    return finder
