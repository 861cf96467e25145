"""Lightning's commands: `fit` keeps what an earlier run wrote, the others write into folders of their own."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hpa_lightning.allowed_imports import imports_limited_by_study
from hpa_lightning.callbacks import TaskEvaluation
from hpa_lightning.callbacks.fit_end import saving
from hpa_lightning.checkpoints import checkpoint_fault, newest_checkpoint
from hpa_lightning.cli.errors import UserError, on_one_line
from hpa_lightning.cli.parser import OneLineErrors, what_was_said
from hpa_lightning.command_results import CommandResults
from hpa_lightning.data import CVITDataModule
from hpa_lightning.files import unused_path
from hpa_lightning.loggers import appending_logger, log_folder, moved_logger
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.emulated_bfloat16 import emulate_where_slow
from hpa_lightning.run_config import SaveRunConfig
from hpa_lightning.run_folder import check_new_run, lock_folder


class TuningParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser; errors are reported in one line."""


class TuningCLI(LightningCLI):
    """LightningCLI whose `validate`, `test` and `predict` never touch the files of a run.

    Each of them writes ``config.yaml``, its logs and its results into a new folder, ``<the run's folder>/test`` (then
    ``test_2``, ...). ``fit`` continues with a run's ``metrics.csv`` after a resume. For all of them ``--ckpt_path
    last`` is the newest whole checkpoint of the run, whatever its name.

    Attributes:
        run_folder: the run's folder.
    """

    run_folder: Path

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Errors are reported in one line, and in the command's name."""
        parser = TuningParser(dump_header=[f"lightning.pytorch=={L.__version__}"], allow_abbrev=False, **kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="Path to a configuration file in json or yaml."
        )
        return parser

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """A checkpoint that cannot be used is reported before anything is built."""
        super().parse_arguments(parser, args)
        path = Path(self.config[self.config.subcommand].get("ckpt_path") or "")
        if path.is_file() and (fault := checkpoint_fault(path)):
            other, _ = newest_checkpoint([path.parent])
            instead = f"the newest one to continue from is {other}" if other else "there is no other one beside it"
            raise UserError(f"{path} is unusable: {fault}; {instead}.")

    def _parse_ckpt_path(self) -> None:
        """Lightning lays the checkpoint's hyperparameters over the configuration.

        A fit is made with what its configuration says, and the module compares that with the checkpoint.
        """
        if self.config.get("subcommand") != "fit":
            super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """What a class says of its own settings is an error of the user.

        Raises:
            UserError: the class has refused them.
        """
        try:
            super().instantiate_classes()
        except (ValueError, OSError, MisconfigurationException) as error:
            text = str(error)  # of the class itself, or with what jsonargparse has tried around it
            raise UserError(what_was_said(text) if "Subtypes:" in text else on_one_line(text)) from error

    def before_instantiate_classes(self) -> None:
        if self.subcommand in ("validate", "test"):
            self.config[self.subcommand].verbose = False  # Lightning's table shows every score once for each set

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer: Any = super().instantiate_trainer(**kwargs)
        emulate_where_slow(trainer)
        if self.subcommand in (None, "fit"):
            trainer.loggers = [appending_logger(logger) for logger in trainer.loggers]
            self.run_folder = log_folder(trainer)
            found: L.Trainer = trainer
            return found
        self.run_folder = log_folder(trainer)
        folder = unused_path(self.run_folder / self.subcommand)
        trainer.loggers = [moved_logger(logger, folder) for logger in trainer.loggers]
        for callback in trainer.callbacks:
            if isinstance(callback, SaveRunConfig):
                callback.folder = folder
        trainer.callbacks.append(CommandResults(self.subcommand, folder))
        made: L.Trainer = trainer
        return made

    def fit(self, **arguments: Any) -> None:
        """Called for the subcommand `fit`: see that the run may write into its folder before anything is written.

        ``--ckpt_path last`` continues from the newest whole checkpoint of the run, whatever its name, and starts the
        run where there is none yet.
        """
        trainer: Any = self.trainer
        rank: Any = rank_zero_only
        folder = self.run_folder
        try:
            if arguments.get("ckpt_path") == "last":
                checkpoint = self._newest_checkpoint()
                arguments["ckpt_path"] = None if checkpoint is None else str(checkpoint)
                rank_zero_info(
                    f"--ckpt_path last: {folder} holds no checkpoint yet, the run starts."
                    if checkpoint is None
                    else f"--ckpt_path last: {checkpoint}."
                )
            keeps = any(isinstance(item, TaskEvaluation) for item in trainer.callbacks)
            if keeps and rank.rank == 0 and not trainer.fast_dev_run:
                lock_folder(folder)
                if arguments.get("ckpt_path") is None:
                    check_new_run(folder, logs=True)
        except ValueError as error:
            raise UserError(str(error)) from error
        with self._mistakes_told():
            trainer.fit(**arguments)
        if not saving(trainer) and not trainer.fast_dev_run:
            rank_zero_info("No checkpoint is written with these settings: the tuned model was in memory only.")

    def validate(self, **arguments: Any) -> None:
        """Called for the subcommand `validate`."""
        with self._mistakes_told():
            self.trainer.validate(**self._with_newest(arguments))

    def test(self, **arguments: Any) -> None:
        """Called for the subcommand `test`."""
        with self._mistakes_told():
            self.trainer.test(**self._with_newest(arguments))

    def predict(self, **arguments: Any) -> None:
        """Called for the subcommand `predict`."""
        with self._mistakes_told():
            self.trainer.predict(**self._with_newest(arguments))

    @contextmanager
    def _mistakes_told(self) -> Iterator[None]:
        """What the package refuses before the first batch (data, settings, a checkpoint) is an error of the user.

        An error that another library or somebody's own code raises keeps its traceback.

        Raises:
            UserError: instead.
            SystemExit: the process was asked to stop, with the status of the signal.
        """
        trainer: Any = self.trainer
        begun = _Begun()
        trainer.callbacks.append(begun)  # behind all others, which check at the start, too
        try:
            yield
        except (ValueError, MisconfigurationException) as error:
            if begun.started or not _raised_by_package(error):
                raise
            raise UserError(on_one_line(str(error))) from error
        except SystemExit as stop:
            # Lightning ends a process that is asked to stop with 0, as if all were done, and Ctrl-C with 1.
            if isinstance(stop, SIGTERMException):
                print(f"hpa-lightning {self.subcommand}: stopped by SIGTERM.", file=sys.stderr)
                raise SystemExit(128 + signal.SIGTERM) from None
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise SystemExit(128 + signal.SIGINT) from None
            raise
        finally:
            trainer.callbacks.remove(begun)

    def _with_newest(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with a path for ``last``, which Lightning would leave out where it finds no such file.

        Raises:
            UserError: the run has no checkpoint.
        """
        if arguments.get("ckpt_path") != "last":
            return arguments
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            raise UserError(
                f"--ckpt_path last: {self.run_folder} holds no checkpoint. Name one with --ckpt_path PATH, or leave "
                "the option out to take the model as it is configured."
            )
        self.config[self.subcommand].ckpt_path = str(checkpoint)  # so says the config.yaml beside the scores
        return {**arguments, "ckpt_path": str(checkpoint)}

    def _newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint of the run; newer ones that are torn are reported."""
        callbacks: Any = self.trainer.checkpoint_callbacks
        saved = [Path(item.dirpath) for item in callbacks if getattr(item, "dirpath", None)]
        checkpoint, torn = newest_checkpoint([self.run_folder, *saved])
        for line in torn:
            rank_zero_warn(line)
        return checkpoint


class _Begun(L.Callback):
    """Knows whether the loop has begun, after the checks of all other callbacks."""

    started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.started or not trainer.sanity_checking

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True


def _raised_by_package(error: BaseException) -> bool:
    """Whether the innermost function of the traceback is one of this package."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    name = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] == __name__.partition(".")[0]


class _ParserBuilt(Exception):
    """Holds the parser, for callers that need no more of the command line."""


class _ParserOnly(TuningCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _ParserBuilt(parser)


def command_parsers() -> Mapping[str, LightningArgumentParser]:
    """Name of each of Lightning's commands -> its parser."""
    try:
        tuning_cli([], _ParserOnly)
    except _ParserBuilt as built:
        (parser,) = built.args
    (subcommands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return subcommands


def tuning_cli(arguments: Sequence[str] | None = None, cli: type[TuningCLI] | None = None) -> TuningCLI:
    """Run `fit`, `validate`, `test` or `predict` with the command line's arguments, or those given."""
    with imports_limited_by_study():
        return (cli or TuningCLI)(
            MLLMModule,
            CVITDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # Injected optimizer factories make a fresh optimizer for every task; the automatic one would be reused.
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            args=arguments,  # type: ignore[arg-type]
        )
