"""The runner: finished, failed, interrupted, locked and changed cells."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.forked_programs import fork_programs_of
from support.stand_in_fits import SCRIPT, cells_of, starts, study_file

from hpa_lightning import float32_products
from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.cli import main
from hpa_lightning.cli.study import PACKAGES
from hpa_lightning.run_folder import INITIAL_SCORES
from hpa_lightning.study import Store, read_study, run_cells, runner


def test_finished_cells_are_not_run_again(stand_in: None, tmp_path: Path) -> None:
    cells, store = cells_of(tmp_path, {"good": "run"}, [1, 2, 3]), Store(tmp_path / "store")
    lines: list[str] = []
    assert run_cells(cells[:2], store, jobs=2, say=lines.append) == []
    assert run_cells(cells, store, jobs=2, say=lines.append) == []
    assert [starts(store, cell) for cell in cells] == [1, 1, 1]
    assert "3 cells, 2 finished; 1 to run" in "\n".join(lines) and "0 left, about 0 min" in lines[-1]
    finished = store.finished(cells[2])
    assert finished is not None and finished.seconds > 0 and finished.threads is not None
    assert finished.run.summary()["AP"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("precision", "slowdown", "gpus", "said"),
    [
        ("bf16-mixed", 9.0, [], True),
        ("bf16-true", 9.0, [], True),
        ("bf16-mixed", 0.6, [], False),
        ("bf16-mixed", 9.0, ["0"], False),
        ("32-true", 9.0, [], False),
        (None, 9.0, [], False),
    ],
)
def test_cells_that_a_processor_without_bfloat16_runs_are_said_to_take_longer(
    precision: str | None,
    slowdown: float,
    gpus: list[str],
    said: bool,
    stand_in: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(float32_products, "product_slowdown", lambda: slowdown)
    monkeypatch.setattr(runner, "_gpus", lambda: gpus)
    (cell,), store = cells_of(tmp_path, {"good": "run"}, [1]), Store(tmp_path / "store")
    trainer = {} if precision is None else {"trainer": {"precision": precision}}
    cell = replace(cell, config={**cell.config, **trainer})
    lines: list[str] = []
    for _ in range(2):  # the second time nothing is left to run
        assert run_cells([cell], store, jobs=1, say=lines.append) == []
    assert sum("slow in bfloat16" in line for line in lines) == said


@pytest.mark.parametrize(
    ("running", "waiting", "jobs", "seconds"),
    [
        ([600.0], [], 8, 600.0),  # one cell that is left does not go faster on more jobs
        ([600.0, 60.0], [300.0], 2, 600.0),
        ([], [100.0, 100.0, 100.0], 2, 200.0),
        ([], [], 2, 0.0),
        ([50.0], [10.0, 70.0], 1, 130.0),
    ],
)
def test_the_rest_takes_as_long_as_its_last_job(
    running: list[float], waiting: list[float], jobs: int, seconds: float
) -> None:
    assert runner.until_done(running, waiting, jobs) == seconds


def test_the_line_of_one_last_cell_does_not_divide_it_among_the_jobs(tmp_path: Path) -> None:
    cells, store = cells_of(tmp_path, {"good": "run"}, [1, 2]), Store(tmp_path / "store")
    progress = runner._Progress(cells, store, jobs=2)
    progress.ended(cells[0], 6000.0, store)
    job: Any = SimpleNamespace(cell=cells[1], started=time.monotonic())
    assert progress.line([], [job], 0) == "1 left, about 100 min"
    assert progress.line([], [job], 2) == "1 left, about 100 min, and 2 that other processes run"


def test_the_line_counts_the_cells_that_another_process_runs(stand_in: None, tmp_path: Path) -> None:
    (held, own), store = cells_of(tmp_path, {"good": "run"}, [1, 2]), Store(tmp_path / "store")
    lock, lines = store.lock(held), []
    assert lock is not None

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith(own.key):
            lock.release()  # the other process ends, after the runner's own cell

    assert run_cells([held, own], store, jobs=1, say=say) == []
    said = {cell.key: line for cell in (held, own) for line in lines if line.startswith(f"{cell.key}: AP")}
    assert said[own.key].endswith("0 left, about 0 min, and 1 that other processes run")
    assert said[held.key].endswith("0 left, about 0 min")


def test_a_failure_is_reported_and_the_others_go_on(stand_in: None, tmp_path: Path) -> None:
    cells = cells_of(tmp_path, {"bad": "fail", "short": "half", "good": "run"}, [1])
    store = Store(tmp_path / "store")
    lines: list[str] = []
    failed = run_cells(cells, store, jobs=1, say=lines.append)
    assert [cell.method for cell in failed] == ["bad", "short"]
    assert any("exit status 1: no such data" in line for line in lines)
    lacks = "the run ended, and its results are not whole: nothing was scored on a after task 0 ('a')"
    assert any(f"default/short/seed_1: FAILED, default/short/seed_1: {lacks}." in line for line in lines)
    assert [store.finished(cell) is not None for cell in cells] == [False, False, True]
    run_cells(cells, store, jobs=1, say=lines.append)
    assert [starts(store, cell) for cell in cells] == [2, 2, 1]


def test_all_cells_are_told_one_folder_for_the_scores_of_the_model_they_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = (
        "import os, pathlib, sys; "
        f"pathlib.Path(sys.argv[1]).with_name('told').write_text(os.environ[{INITIAL_SCORES!r}])"
    )
    monkeypatch.setattr(runner, "_command", lambda config, checkpoint: [sys.executable, "-c", program, str(config)])
    cells, store = cells_of(tmp_path, {"good": "run", "other": "run"}, [1]), Store("store")
    run_cells(cells, store, jobs=2, say=lambda line: None)
    told = {(store.folder(cell) / "told").read_text() for cell in cells}
    assert told == {str(tmp_path.resolve() / "store" / "initial-scores")}


def test_a_changed_configuration_is_refused(stand_in: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run_cells(cells_of(tmp_path, {"good": "run"}, [1]), store, say=lambda line: None)
    (changed,) = cells_of(tmp_path, {"good": "half"}, [1])
    with pytest.raises(ValueError, match="made with another configuration"):
        store.finished(changed)
    with pytest.raises(SystemExit, match="made with another configuration"):
        main(["study", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")])


def test_a_cell_that_another_runner_has_finished_is_not_run_again(
    stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, store, lines = cells_of(tmp_path, {"good": "run"}, [1, 2]), Store(tmp_path / "store"), []
    say = lines.append

    def meanwhile(line: str) -> None:
        if not lines:  # both are waiting; a second runner does them first
            run_cells(cells, Store(tmp_path / "store"), jobs=1, say=lambda text: None)
        say(line)

    assert run_cells(cells, store, jobs=1, say=meanwhile) == []
    assert [starts(store, cell) for cell in cells] == [1, 1]
    assert sum("another process has finished it" in line for line in lines) == 2


def test_two_runners_do_not_share_a_cell(stand_in: None, tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "run"}, [1]), Store(tmp_path / "store")
    held = store.lock(cell)
    assert held is not None and store.lock(cell) is None
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "another process is running it; it is waited for" in line:
            assert starts(store, cell) == 0
            held.release()  # that process ends without having finished the cell

    assert run_cells([cell], store, jobs=1, say=say) == []
    assert starts(store, cell) == 1 and store.finished(cell) is not None
    assert sum("waited for" in line for line in lines) == 1


HOLDS = "import sys, time, pathlib; from hpa_lightning.run_folder import lock_folder; "

HOLDS += "lock_folder(pathlib.Path(sys.argv[1])); print('locked', flush=True); time.sleep(300)"


def test_a_fit_that_outlives_its_runner_keeps_the_cell_until_it_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell, other), store = cells_of(tmp_path, {"good": "run"}, [1, 2]), Store(tmp_path / "store")
    status = ["study", "status", str(tmp_path / "study.yaml"), "--store", str(store.root)]
    command = [sys.executable, "-c", HOLDS, str(store.folder(cell))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fit:
        assert fit.stdout is not None and fit.stdout.readline() == "locked\n"
        assert store.lock(cell) is None and store.is_locked(cell)
        main(status)
        assert capsys.readouterr().out == f"running   {cell.key}\nto run    {other.key}\n"
        assert not store.folder(other).exists(), "looking makes nothing"
        fit.kill()  # it releases nothing itself
    lock = store.lock(cell)
    assert lock is not None and store.lock(cell) is None
    main(status)  # its runner has it
    assert capsys.readouterr().out.startswith(f"running   {cell.key}\n")
    lock.release()
    assert not store.is_locked(cell)
    main(status)
    assert capsys.readouterr().out.startswith(f"to run    {cell.key}\n")


def test_a_fit_that_finds_its_folder_in_use_is_no_failure(stand_in: None, tmp_path: Path) -> None:
    """The runner of the other fit was killed while that one had not yet locked the folder."""
    (cell,), store, lines = cells_of(tmp_path, {"late": "late"}, [1]), Store(tmp_path / "store"), []
    assert run_cells([cell], store, jobs=1, say=lines.append) == []
    assert starts(store, cell) == 2 and store.finished(cell) is not None
    assert sum("waited for" in line for line in lines) == 1 and not any("FAILED" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """The whole command in a process of its own: no child is left behind, and what is finished is kept."""
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)
    path = study_file(tmp_path, {"good": "run", "slow": "wait"}, [1])
    patched = (
        "import sys; from hpa_lightning.study import runner; from hpa_lightning.cli import main; "
        f"runner._command = lambda config, checkpoint: [sys.executable, {str(script)!r}, str(config)]; "
        f"main(['study', 'run', {str(path)!r}, '--store', {str(tmp_path / 'store')!r}, '--jobs', '1'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", patched],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored where the tests run in the background
    )
    store, cells = Store(tmp_path / "store"), read_study(path).cells()
    deadline = time.monotonic() + 120
    while not starts(store, cells[1]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130 and "1 running cells were stopped" in output
    assert store.finished(cells[0]) is not None and store.finished(cells[1]) is None
    lock = store.lock(cells[1])
    assert lock is not None, "the slow cell still runs"
    lock.release()


def test_one_real_cell_with_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hpa-lightning fit` as the runner starts it; the second time from the checkpoint that the first left behind."""
    arguments: dict[str, Any] = {"seed": "${seed}", "steps": 1, "train_size": 16, "test_size": 2}
    arguments |= {"calibration_size": 1, "harmful_calibration_size": 3}
    study = {
        "base": {
            "seed_everything": "${seed}",
            "model": {"class_path": "hpa_lightning.modules.NanoModule"},
            "data": {
                "class_path": "hpa_lightning.data.nano.NanoDataModule",
                "init_args": {**arguments, "task_order": ["charts", "digits"]},
            },
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": -1,
                "reload_dataloaders_every_n_epochs": 1,
                "enable_progress_bar": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "${folder}", "name": "", "version": ""},
                },
                "callbacks": [
                    {"class_path": "hpa_lightning.callbacks.SequentialTuning"},
                    {
                        "class_path": "hpa_lightning.callbacks.TaskEvaluation",
                        "init_args": {"method": "${title}", "report": False},
                    },
                    {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
                ],
            },
        },
        "methods": {"plain": {"title": "Plain"}},
        "groups": {"all": {"title": "All", "methods": ["plain"], "seeds": [3]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    (cell,), store = read_study(path).cells(), Store(tmp_path / "store")
    assert run_cells([cell], store, say=lambda line: None, packages=PACKAGES) == []
    finished = store.finished(cell)
    assert finished is not None and finished.run.steps == [-1, 0, 1] and finished.run.seed == 3
    assert finished.run.method == "Plain"

    fork_programs_of(runner, monkeypatch)
    (store.folder(cell) / "cell.json").unlink()
    checkpoint, _ = newest_checkpoint([store.folder(cell)])
    assert checkpoint is not None
    half = checkpoint.with_name("later.ckpt")  # as a full disk or a lost machine leaves it
    half.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    lines: list[str] = []
    assert run_cells([cell], store, say=lines.append) == []
    assert any("later.ckpt is left out: it is cut off" in line for line in lines)
    again = store.finished(cell)
    assert again is not None and again.run.summary()["AP"] == finished.run.summary()["AP"]


def test_a_study_runs_no_package_that_was_not_allowed(
    stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = study_file(tmp_path, {"one": "finish"}, [1])
    content = yaml.safe_load(path.read_text())
    content["base"]["trainer"] = {"callbacks": [{"class_path": "downloaded.Callback"}]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=r"names the class 'downloaded.Callback'.*--imports downloaded"):
        main(["study", "run", str(path)])
    assert not list((tmp_path / "runs").rglob("log.txt"))
    main(["study", "run", str(path), "--imports", "downloaded"])
    (log,) = (tmp_path / "runs").rglob("log.txt")
    assert log.read_text() == ",".join([*PACKAGES, "downloaded"]), "its fit is told what it may import"


def test_a_cell_that_starts_with_another_waits_for_it(stand_in: None, tmp_path: Path) -> None:
    path = study_file(tmp_path, {"later": "run", "stage": "run", "lost": "run", "bad": "fail"}, [1])
    study = yaml.safe_load(path.read_text())
    for name, before in (("later", "stage"), ("lost", "bad")):
        study["methods"][name]["after"] = before
        study["methods"][name]["config"]["from"] = "${start}"
    study["groups"]["all"]["methods"] = ["later", "lost"]
    path.write_text(yaml.safe_dump(study))
    cells, store = read_study(path).cells(), Store(tmp_path / "store")
    assert [cell.method for cell in cells] == ["stage", "later", "bad", "lost"]
    stage, later, bad, lost = cells
    lines: list[str] = []
    assert run_cells(cells, store, jobs=2, say=lines.append) == [bad, lost]
    assert any("default/lost/seed_1: FAILED, since the run that it starts with" in line for line in lines)
    config = yaml.safe_load((store.folder(later) / "config.in.yaml").read_text())
    assert config["from"] == str(store.folder(stage)) and starts(store, later) == 1
    # Of an archived run the results are there, and what others start with is not.
    archive = tmp_path / "finished.jsonl"
    store.archive([stage], archive)
    other = Store(tmp_path / "other", [archive])
    assert run_cells([stage], other, jobs=1, say=lines.append) == [] and starts(other, stage) == 0
    assert run_cells([stage, later], other, jobs=1, say=lines.append) == []
    assert (starts(other, stage), starts(other, later)) == (1, 1)
