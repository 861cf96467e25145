"""`fit`, `validate`, `test` and `predict` through the command line: what each writes, and what each leaves alone."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from support.command_errors import told
from support.command_settings import write_configuration

from hpa_lightning.cli import main
from hpa_lightning.results.predictions import read_predictions
from hpa_lightning.results.run_results import RunResults

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    main(["fit", "--config", str(write_configuration(folder))])
    return folder


def run(folder: Path, command: str, *arguments: str) -> None:
    main([command, "--config", str(folder / "fit.yaml"), *arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_fit_writes_what_it_did(fitted: Path) -> None:
    assert {"config.yaml", "metrics.csv", "hparams.yaml"} <= set(snapshot(fitted / "run"))
    rates = [float(row["lr-AdamW"]) for row in rows(fitted / "run" / "metrics.csv") if row["lr-AdamW"]]
    assert rates == pytest.approx([2e-4 * (1 - step / 3) for step in range(3)] * 2)  # one line of YAML for both tasks


def test_test_leaves_the_run_alone_and_tells_every_score_once(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(fitted / "run")
    checkpoint = str(fitted / "checkpoints" / "step=6.ckpt")
    run(fitted, "test", "--ckpt_path", checkpoint)
    printed = capsys.readouterr().out
    for name in ("a", "b", "harm", "fine"):
        assert sum(line.split()[:1] == [name] for line in printed.splitlines()) == 1
    folder = fitted / "run" / "test"
    results = RunResults.from_file(folder)
    summary = results.summary()
    expected = f"AP {100 * summary['AP']:.2f} %, MASR {100 * summary['MASR']:.2f} %"
    assert expected in printed and results.run["tested"] == checkpoint
    assert {item.set: len(item.rows) for item in read_predictions(folder)} == {"a": 3, "b": 3, "harm": 2, "fine": 2}
    assert results.decodings()["a"]["max_new_tokens"] == 3
    logged = {key: value for row in rows(folder / "metrics.csv") for key, value in row.items() if value}
    assert float(logged["evaluation/mean_attack_success_rate"]) == pytest.approx(summary["MASR"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] == checkpoint
    main(["report", str(folder), "--output", str(fitted / "page")])
    assert "tested" in (fitted / "page" / "report.html").read_text()
    # Once more: into a folder of its own again.
    first = snapshot(folder)
    run(fitted, "test")
    assert snapshot(folder) == first and RunResults.from_file(fitted / "run" / "test_2").run["tested"] is None
    assert snapshot(fitted / "run") == before


def test_validate_and_predict_leave_the_run_alone(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(fitted / "run")
    run(fitted, "validate")
    assert "AP " in capsys.readouterr().out
    assert RunResults.from_file(fitted / "run" / "validate").tasks == ["a", "b"]
    asked = fitted / "images" / "asked.json"  # beside its pictures
    asked.write_text((fitted / "harm.json").read_text())
    run(fitted, "predict", "--data.init_args.predict_data", str(asked), "--return_predictions=false")
    answers = [json.loads(line) for line in (fitted / "run" / "predict" / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["harm0", "harm1"]
    assert all(
        {"prompt", "response", "decoding"} <= answer.keys() and answer["set"] == "predict_data" for answer in answers
    )
    assert snapshot(fitted / "run") == before


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_last_is_the_newest_checkpoint_of_the_run(
    command: str, fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning looks for files named `last`, and takes the untuned model where there is none."""
    newest = fitted / "checkpoints" / "finished.ckpt"  # the fit's own are from before its end
    for checkpoint in ("last", None):
        options = ["--ckpt_path", checkpoint] if checkpoint else []
        earlier = set((fitted / "run").iterdir())
        run(fitted, command, *options)
        (folder,) = set((fitted / "run").iterdir()) - earlier
        text = f"the checkpoint {newest}" if checkpoint else "the model as configured, no checkpoint was given"
        assert capsys.readouterr().out.splitlines().count(f"{command} takes {text}.") == 1
        name = "answers.jsonl" if command == "predict" else "results.jsonl"
        assert json.loads((folder / name).read_text().splitlines()[0])["weights"] == text
        assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] == (
            str(newest) if checkpoint else None
        )


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_last_of_a_run_without_checkpoints_is_an_error(command: str, fitted: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((fitted / "fit.yaml").read_text())
    config["trainer"] |= {"logger": False, "default_root_dir": str(tmp_path / "new"), "callbacks": None}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        SystemExit, match=r"--ckpt_path last: .*new holds no checkpoint\. Name one with --ckpt_path PATH"
    ):
        run(tmp_path, command, "--ckpt_path", "last")


def test_without_a_logger_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("hpa_lightning.lightning_commands.rank_zero_info", told.append)
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {
        "logger": False,
        "callbacks": config["trainer"]["callbacks"][:1],
        "enable_checkpointing": False,
    }
    path.write_text(yaml.safe_dump(config))
    run(tmp_path, "fit")
    assert told == ["No checkpoint is written with these settings: the tuned model was in memory only."]
    saved = (tmp_path / "config.yaml").read_bytes()
    run(tmp_path, "test")
    assert (tmp_path / "config.yaml").read_bytes() == saved
    assert (tmp_path / "test" / "config.yaml").is_file() and (tmp_path / "test" / "results.jsonl").is_file()


@pytest.mark.parametrize("checkpoint", ["last", "FILE"])
def test_a_module_that_is_made_in_another_way_is_noticed(checkpoint: str, fitted: Path, tmp_path: Path) -> None:
    """With a file, Lightning lays the checkpoint's hyperparameters over the configuration, without a word."""
    config = yaml.safe_load((fitted / "fit.yaml").read_text())
    config["model"]["init_args"]["generation"] = {"num_beams": 2}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    path = str(fitted / "checkpoints" / "step=4.ckpt") if checkpoint == "FILE" else checkpoint
    with pytest.raises(SystemExit, match=r"model\.generation\.num_beams: nothing in the .*, 2 now") as refused:
        run(tmp_path, "fit", "--ckpt_path", path)
    assert refused.value.code == 2


class Fails(L.Callback):
    """Somebody's plugin with a bug, at the start or in a step."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    def _fail(self, *_: Any) -> None:
        int("no number")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_mistake_before_the_first_batch_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    task = config["data"]["init_args"]["tasks"][0]
    task["train"] = task["test"] = "/none/train.json"
    path.write_text(yaml.safe_dump(config))
    said = told([command, "--config", str(path)], capsys)
    assert said.startswith(f"hpa-lightning {command}: there is no data file '/none/train.json'; expected JSON")


def test_a_model_that_is_not_there_is_told_without_what_the_parser_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["model"] = {"class_path": "hpa_lightning.modules.MLLMModule", "init_args": {"model": "/none/model"}}
    path.write_text(yaml.safe_dump(config))
    said = told(["fit", "--config", str(path)], capsys)
    assert said.startswith("hpa-lightning fit: model /none/model is no folder here, and the Hub gave no model: ")
    assert "Namespace" not in said and "Subtypes" not in said


class Asked(L.Callback):
    """The process is asked to stop in its second step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fit_that_is_asked_to_stop_ends_with_the_signal_s_status(number: int, tmp_path: Path) -> None:
    """Lightning ends with 0 and 1."""
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    asked = {"class_path": f"{Asked.__module__}.Asked", "init_args": {"number": int(number)}}
    config["trainer"]["callbacks"] = [asked, *config["trainer"]["callbacks"]]
    path.write_text(yaml.safe_dump(config))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
    try:
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path, "fit")
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert stopped.value.code == 128 + number


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_start"])
def test_a_bug_of_somebody_else_keeps_its_traceback(hook: str, tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    config = yaml.safe_load(path.read_text())
    fails = {"class_path": f"{Fails.__module__}.Fails", "init_args": {"hook": hook}}
    config["trainer"]["callbacks"] = [*config["trainer"]["callbacks"], fails]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="no number"):
        run(tmp_path, "fit")


def test_a_resumed_fit_keeps_the_earlier_rows(tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    run(tmp_path, "fit")
    whole = rows(tmp_path / "run" / "metrics.csv")
    started = (tmp_path / "run" / "config.yaml").read_bytes()
    for number, step in enumerate((4, 2), start=1):
        run(tmp_path, "fit", "--ckpt_path", str(tmp_path / "checkpoints" / f"step={step}.ckpt"))
        assert rows(tmp_path / "run" / "metrics.csv") == whole
        assert (tmp_path / "run" / "config.yaml").read_bytes() == started
        name = "config.resumed.yaml" if number == 1 else f"config.resumed_{number}.yaml"
        assert f"step={step}.ckpt" in (tmp_path / "run" / name).read_text()
    # A new run into the old folder: its rows are not mixed with the old ones, which are kept.
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["seed_everything"] = 7
    path.write_text(yaml.safe_dump(config))
    run(tmp_path, "fit")
    assert rows(tmp_path / "run" / "metrics.previous.csv") == whole
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == [row["step"] for row in whole]
    assert (tmp_path / "run" / "config.previous.yaml").read_bytes() == started
    assert "seed_everything: 7" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_finder_s_batch_size_is_trained_and_scheduled_in_a_run_that_is_none_resumed(tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    run(tmp_path, "fit")
    whole = rows(tmp_path / "run" / "metrics.csv")
    config = yaml.safe_load(path.read_text())
    options = {"mode": "binsearch", "max_trials": 1, "steps_per_trial": 1, "init_val": 4}
    finder = {"class_path": "BatchSizeFinder", "init_args": {**options, "batch_arg_name": "train_batch_size"}}
    config["trainer"]["callbacks"] = [*config["trainer"]["callbacks"], finder]
    path.write_text(yaml.safe_dump(config))
    run(tmp_path, "fit")
    assert rows(tmp_path / "run" / "metrics.previous.csv") == whole
    # Both tasks are six records in batches of three, and the schedule of each ends after two steps.
    rates = [float(row["lr-AdamW"]) for row in rows(tmp_path / "run" / "metrics.csv") if row["lr-AdamW"]]
    assert rates == [2e-4, 1e-4, 2e-4, 1e-4]
    assert "BatchSizeFinder" in (tmp_path / "run" / "config.yaml").read_text()
    assert not list((tmp_path / "run").glob("config.resumed*"))
