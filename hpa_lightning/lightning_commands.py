"""Lightning's commands: `fit` keeps what an earlier run wrote, the others write into folders of their own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from hpa_lightning.callbacks import TaskEvaluation
from hpa_lightning.callbacks.fit_end import saving
from hpa_lightning.checkpoints import checkpoint_fault, newest_checkpoint
from hpa_lightning.cli.errors import UserError, on_one_line
from hpa_lightning.cli.parser import OneLineErrors
from hpa_lightning.data import CVITDataModule
from hpa_lightning.data.needs import has_own_predict_data, predicted_sets
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import ScoredSet, interleaved, means
from hpa_lightning.files import whole_file
from hpa_lightning.loggers import RunCSVLogger
from hpa_lightning.metrics.scoring import broken_not_safe, listed, mostly_empty
from hpa_lightning.modules import MLLMModule
from hpa_lightning.report.category_tables import further_text
from hpa_lightning.report.run_tables import ANSWER_COLUMNS
from hpa_lightning.results.events import EndEvent, ScoreEvent, TestedEvent
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter
from hpa_lightning.results.run_results import COUNTED, run_origin
from hpa_lightning.run_folder import check_new_run, lock_folder
from hpa_lightning.table import Table
from hpa_lightning.trainer_attributes import datamodule_of

ANSWERS = "answers.jsonl"


class TuningParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser; mistakes are told in one line."""


class TuningCLI(LightningCLI):
    """LightningCLI whose `validate`, `test` and `predict` never touch the files of a run.

    Each of them writes ``config.yaml``, its logs and its results into a new folder, ``<the run's folder>/test`` (then
    ``test_2``, ...). ``fit`` goes on with a run's ``metrics.csv`` after a resume. For all of them ``--ckpt_path last``
    is the newest whole checkpoint of the run, whatever its name.

    Attributes:
        run_folder: the run's folder.
    """

    run_folder: Path

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Mistakes are told in one line, and in the command's name."""
        parser = TuningParser(dump_header=[f"lightning.pytorch=={L.__version__}"], allow_abbrev=False, **kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="Path to a configuration file in json or yaml."
        )
        return parser

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """A checkpoint that is of no use is told before anything is built."""
        super().parse_arguments(parser, args)
        path = Path(self.config[self.config.subcommand].get("ckpt_path") or "")
        if path.is_file() and (fault := checkpoint_fault(path)):
            other, _ = newest_checkpoint([path.parent])
            instead = f"the newest one to go on from is {other}" if other else "there is no other one beside it"
            raise UserError(f"{path} is of no use: {fault}; {instead}.")

    def instantiate_classes(self) -> None:
        """What a class says of its own settings is the user's to mend.

        Raises:
            UserError: the class has refused them.
        """
        try:
            super().instantiate_classes()
        except (ValueError, OSError, MisconfigurationException) as error:
            raise UserError(on_one_line(str(error))) from error

    def before_instantiate_classes(self) -> None:
        if self.subcommand in ("validate", "test"):
            self.config[self.subcommand].verbose = False  # Lightning's table shows every score once for each set

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer: Any = super().instantiate_trainer(**kwargs)
        if self.subcommand in (None, "fit"):
            trainer.loggers = [_appending(logger) for logger in trainer.loggers]
            self.run_folder = _log_folder(trainer)
            found: L.Trainer = trainer
            return found
        self.run_folder = _log_folder(trainer)
        folder = _unused(self.run_folder / self.subcommand)
        trainer.loggers = [_moved(logger, folder) for logger in trainer.loggers]
        for callback in trainer.callbacks:
            if isinstance(callback, SaveRunConfig):
                callback.folder = folder
        trainer.callbacks.append(CommandResults(self.subcommand, folder))
        made: L.Trainer = trainer
        return made

    def fit(self, **arguments: Any) -> None:
        """Called for the subcommand `fit`: see that the run may write into its folder before anything is written.

        ``--ckpt_path last`` goes on from the newest whole checkpoint of the run, whatever its name, and starts the run
        where there is none yet.
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
        trainer.fit(**arguments)
        if not saving(trainer) and not trainer.fast_dev_run:
            rank_zero_info("No checkpoint is written with these settings: the tuned model was in memory only.")

    def validate(self, **arguments: Any) -> None:
        """Called for the subcommand `validate`."""
        self.trainer.validate(**self._with_newest(arguments))

    def test(self, **arguments: Any) -> None:
        """Called for the subcommand `test`."""
        self.trainer.test(**self._with_newest(arguments))

    def predict(self, **arguments: Any) -> None:
        """Called for the subcommand `predict`."""
        self.trainer.predict(**self._with_newest(arguments))

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
        """The newest whole checkpoint of the run; newer ones that are torn are told."""
        callbacks: Any = self.trainer.checkpoint_callbacks
        saved = [Path(item.dirpath) for item in callbacks if getattr(item, "dirpath", None)]
        checkpoint, torn = newest_checkpoint([self.run_folder, *saved])
        for line in torn:
            rank_zero_warn(line)
        return checkpoint


class _ParserBuilt(Exception):
    """Holds the parser, for who wants no more of the command line."""


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


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration beside what the command writes.

    ``fit`` writes ``config.yaml`` into the logger's folder. If that holds one already, a resumed run writes
    ``config.resumed.yaml`` (then ``config.resumed_2.yaml``, ...) beside it, and a new run moves it to
    ``config.previous.yaml``.

    Attributes:
        folder: of a command other than `fit`.
    """

    folder: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir)  # the same calls on every process
        if trainer.is_global_zero and not self.already_saved and not (folder / self.config_filename).exists():
            self._save(folder / self.config_filename)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Only now is known whether the run is resumed."""
        resumed = trainer.ckpt_path is not None
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.resumed_at = trainer.global_step if resumed else None
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero or self.already_saved:
            return
        path = folder / self.config_filename
        if resumed:
            path = _unused(path.with_suffix(f".resumed{path.suffix}"))
        else:
            path.replace(path.with_suffix(f".previous{path.suffix}"))
        self._save(path)

    def _save(self, path: Path) -> None:
        with whole_file(path) as beside:
            self.parser.save(self.config, beside, skip_none=False, overwrite=True, multifile=self.multifile)
        self.already_saved = True


class CommandResults(L.Callback):
    """Writes and prints what `validate`, `test` or `predict` found.

    `validate` and `test`: ``results.jsonl`` and ``predictions/``, as a run has them, so that ``hpa-lightning report``,
    ``judge`` and ``answers`` read them; one table of all scores, and their means. `predict`: ``answers.jsonl``, one
    object for each record. All say first whose weights these are, and note it (``weights``) in what they write.

    Hooks: ``on_validation_start``, ``on_validation_end``, ``on_test_start``, ``on_test_end``, ``on_predict_start``,
    ``on_predict_batch_end``, ``on_predict_end``. State: none.

    Args:
        command: its name.
        folder: to write to.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command, self.folder = command, folder
        self._answers: dict[int, list[Any]] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_weights(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._scores(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._scores(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._answers.setdefault(dataloader_idx, []).extend(outputs if isinstance(outputs, list) else [outputs])

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = datamodule_of(trainer)
        sets, own_data = predicted_sets(datamodule), has_own_predict_data(datamodule)
        tell: Any = getattr(pl_module, "decoding", None)
        rows = []
        loaders: Any = trainer.num_predict_batches
        for index in range(len(loaders)):  # on every process, also on one that had no sample of a small set
            found = interleaved(self._answers.get(index, []), trainer.world_size)
            if not all(isinstance(row, dict) for row in found):
                rank_zero_warn(
                    f"predict_step of {type(pl_module).__name__} returns no list of dicts, so {ANSWERS} is not "
                    "written; use a BasePredictionWriter of your own."
                )
                return
            of = {"set": "predict_data"} if own_data else {"set": sets[index].name} if index < len(sets) else {}
            decoding = {}
            if callable(tell):
                decoding = {"decoding": decoding_of(sets[index], pl_module) if index < len(sets) else tell()}
            rows += [{**of, **row, **decoding, "weights": _weights(trainer)} for row in found]
        if trainer.is_global_zero:
            write_rows(self.folder / ANSWERS, rows)
            cut = sum(row.get("cut") is True for row in rows)
            print(f"{len(rows)} answers, {cut} of them cut by the limit on new tokens: {self.folder / ANSWERS}")

    def _report_weights(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            print(f"{self.command} takes {_weights(trainer)}.")

    def _scores(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scored: list[ScoredSet] = getattr(pl_module, "scored", [])
        if not scored:
            rank_zero_info(f"{type(pl_module).__name__} keeps no scores for {RESULT_FILE}; see the logger's files.")
            return
        if not trainer.is_global_zero:
            return
        writer = ResultWriter(self.folder / RESULT_FILE)
        checkpoint = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        sets = [{"name": fields["set"], "kind": fields["kind"]} for fields, _ in scored]
        run = TestedEvent(
            method=f"{self.command} of {checkpoint or 'the model as configured'}",
            tested=checkpoint,
            weights=_weights(trainer),
            tasks=tuple(item["name"] for item in sets if item["kind"] == "task"),
            sets=tuple(sets),
            ends=True,
            **run_origin(),
        )
        writer.write(run)
        for fields, rows in scored:
            writer.write(ScoreEvent(step=-1, after=None, **fields))
            decoding = {"decoding": fields["decoding"]} if "decoding" in fields else {}
            write_rows(prediction_file(self.folder, -1, fields["set"]), ({**row, **decoding} for row in rows))
        writer.write(EndEvent(finished_tasks=0, tasks=len(run.tasks)))
        print(score_text(scored))
        print(f"Scores and answers: {self.folder}")


def score_text(scored: Sequence[ScoredSet]) -> str:
    """Every score once, in percent of its range, and the means; a warning where most answers to a set are empty."""
    rows: list[list[Any]] = []
    for fields, _ in scored:
        shares = [f"{100 * fields[key] / fields['n']:.1f}" if key in fields else "–" for key in COUNTED]
        rows.append([fields["set"], fields["kind"], fields["metric"], 100 * fields["score"], fields["n"], *shares])
    table = Table(["Set", "Kind", "Metric", "%", "n", *(heading for _, heading, _ in ANSWER_COLUMNS)], rows).text()
    titles = {"average_performance": "AP", "mean_attack_success_rate": "MASR", "over_refusal": "over-refusal"}
    titles["helpfulness"] = "helpfulness"
    figures = ", ".join(f"{titles[name]} {100 * value:.2f} %" for name, value in means(scored).items())
    empty = mostly_empty({fields["set"]: fields for fields, _ in scored})
    figures += "".join(f"\n{reported}" for fields, _ in scored if (reported := further_text(fields)))
    warning = f"\nWarning: {broken_not_safe('The model', listed(empty))}" if empty else ""
    return f"{table}\n{figures}{warning}"


def _weights(trainer: L.Trainer) -> str:
    """Say whose weights the trainer has loaded."""
    if trainer.ckpt_path is None:
        return "the model as configured, no checkpoint was given"
    return f"the checkpoint {trainer.ckpt_path}"


def _log_folder(trainer: L.Trainer) -> Path:
    """The logger's folder without asking the other processes, which do not run yet."""
    for logger in trainer.loggers:
        folder = logger.log_dir or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)


def _unused(path: Path) -> Path:
    """The path, or the first of ``name_2``, ``name_3``, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate


def _appending(logger: Logger) -> Logger:
    """A ``CSVLogger`` that keeps earlier rows in the place of one that deletes them."""
    if type(logger) is not CSVLogger:
        return logger
    return RunCSVLogger(logger.save_dir, logger.name, logger._version, logger._prefix, logger._flush_logs_every_n_steps)


def _moved(logger: Logger, folder: Path) -> Logger:
    """A logger of files, writing into another folder; loggers that send their records away stay as they are."""
    if isinstance(logger, CSVLogger):
        return CSVLogger(folder, "", "", logger._prefix, logger._flush_logs_every_n_steps)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardLogger(folder, "", "", prefix=logger._prefix)
    return logger
