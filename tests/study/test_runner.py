"""The store and the runner: finished, failed, interrupted, locked and changed cells."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.checkpoints import newest_checkpoint
from hpa_lightning.cli import main
from hpa_lightning.study import Cell, Store, read_study, run_cells, runner

# Stands in for `hpa-lightning fit`: writes a result file, or fails, or waits, as the configuration says.
SCRIPT = """
import sys, time, yaml
from pathlib import Path
from hpa_lightning.results.result_file import ResultWriter
config = yaml.safe_load(Path(sys.argv[1]).read_text())
folder = Path(config["folder"])
(folder / "starts").open("a").write("x")
if config["act"] == "fail":
    sys.exit("no such data")
if config["act"] == "late" and len((folder / "starts").read_text()) == 1:
    sys.exit(f"hpa-lightning fit: another process fits into {folder}; two runs in one folder would mix their results.")
if config["act"] == "wait":
    time.sleep(120)
writer = ResultWriter(folder / "results.jsonl")
writer.write({"event": "run", "method": config["title"], "seed": config["seed"], "tasks": ["a"],
              "sets": [{"name": "a", "kind": "task"}], "commit": "c0ffee", "command": f"fit --config {sys.argv[1]}"})
if config["act"] == "half":
    sys.exit(0)
score = {"event": "score", "step": 0, "after": "a", "set": "a", "kind": "task", "metric": "exact_match"}
writer.write({**score, "score": config["seed"] / 10, "n": 5})
writer.write({"event": "retention", "step": 0, "layer": 1, "module": "m", "columns": 2, "retained": 1})
"""


def study_file(folder: Path, acts: dict[str, str], seeds: list[int]) -> Path:
    study = {
        "base": {"folder": "${folder}", "title": "${title}", "seed": "${seed}", "act": "run"},
        "methods": {name: {"title": name, "config": {"act": act}} for name, act in acts.items()},
        "groups": {"all": {"title": "All", "methods": list(acts), "seeds": seeds}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(runner, "_command", lambda config, checkpoint: [sys.executable, str(script), str(config)])


def cells_of(folder: Path, acts: dict[str, str], seeds: list[int]) -> list[Cell]:
    return read_study(study_file(folder, acts, seeds)).cells()


def starts(store: Store, cell: Cell) -> int:
    path = store.folder(cell) / "starts"
    return len(path.read_text()) if path.exists() else 0


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


def test_a_failure_is_reported_and_the_others_go_on(stand_in: None, tmp_path: Path) -> None:
    cells = cells_of(tmp_path, {"bad": "fail", "short": "half", "good": "run"}, [1])
    store = Store(tmp_path / "store")
    lines: list[str] = []
    failed = run_cells(cells, store, jobs=1, say=lines.append)
    assert [cell.method for cell in failed] == ["bad", "short"]
    assert any("exit status 1: no such data" in line for line in lines)
    assert any("without scores after its last task" in line for line in lines)
    assert [store.finished(cell) is not None for cell in cells] == [False, False, True]
    run_cells(cells, store, jobs=1, say=lines.append)
    assert [starts(store, cell) for cell in cells] == [2, 2, 1]


def test_a_changed_configuration_is_refused(stand_in: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run_cells(cells_of(tmp_path, {"good": "run"}, [1]), store, say=lambda line: None)
    (changed,) = cells_of(tmp_path, {"good": "half"}, [1])
    with pytest.raises(ValueError, match="made with another configuration"):
        store.finished(changed)
    with pytest.raises(SystemExit, match="made with another configuration"):
        main(["study", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")])


def test_what_another_configuration_left_is_put_aside(stand_in: None, tmp_path: Path) -> None:
    """Its checkpoint above all: the changed cell must not go on from it."""
    store = Store(tmp_path / "store")
    (failing,) = cells_of(tmp_path, {"good": "fail"}, [1])
    for expected in (1, 2):  # the same configuration goes on in its folder
        assert run_cells([failing], store, say=lambda line: None) == [failing]
        assert starts(store, failing) == expected
    (store.folder(failing) / "last.ckpt").write_text("weights")
    (changed,) = cells_of(tmp_path, {"good": "run"}, [1])
    assert changed.key == failing.key and run_cells([changed], store, say=lambda line: None) == []
    assert starts(store, changed) == 1 and newest_checkpoint([store.folder(changed)]) == (None, [])
    aside = store.folder(changed).with_name("seed_1.other1")
    assert (aside / "last.ckpt").read_text() == "weights" and len((aside / "starts").read_text()) == 2
    assert [path.name for path in store.root.glob("*/*/*/cell.json")] == ["cell.json"]


def test_the_time_of_a_cut_off_cell_counts_with_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (cell,), (changed,) = cells_of(tmp_path, {"good": "run"}, [1]), cells_of(tmp_path, {"good": "half"}, [1])
    store.folder(cell).mkdir(parents=True)
    store.start(cell)
    assert (store.add_time(cell, 2.0), store.add_time(cell, 3.0)) == (2.0, 5.0)
    store.start(cell)
    assert store.add_time(cell, 1.0) == 6.0
    store.start(changed)
    assert store.add_time(changed, 1.0) == 1.0


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


def test_a_fit_that_outlives_its_runner_keeps_the_cell_until_it_is_killed(tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "run"}, [1]), Store(tmp_path / "store")
    command = [sys.executable, "-c", HOLDS, str(store.folder(cell))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fit:
        assert fit.stdout is not None and fit.stdout.readline() == "locked\n"
        assert store.lock(cell) is None and store.is_locked(cell)
        fit.kill()  # it releases nothing itself
    lock = store.lock(cell)
    assert lock is not None and store.lock(cell) is None
    lock.release()
    assert not store.is_locked(cell)


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


def test_archive(stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, {"good": "run"}, [1, 2])
    store = Store(tmp_path / "store")
    run_cells(read_study(path).cells(), store, say=lambda line: None)
    arguments = [
        "study",
        "archive",
        str(path),
        "--store",
        str(tmp_path / "store"),
        "--output",
        str(tmp_path / "a.jsonl"),
    ]
    main(arguments)
    assert "2 cells" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert all(event["event"] != "retention" for line in lines for event in line["events"])
    assert lines[0]["events"][0]["command"] == "fit --config default/good/seed_1/config.in.yaml"

    elsewhere = Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"])
    for cell, summary in zip(read_study(path).cells(), (0.1, 0.2), strict=True):
        finished = elsewhere.finished(cell)
        assert finished is not None and finished.run.summary()["AP"] == pytest.approx(summary)
    lines_said: list[str] = []
    run_cells(read_study(path).cells(), elsewhere, say=lines_said.append)
    assert "2 finished; 0 to run" in lines_said[0] and not (tmp_path / "elsewhere").exists()
    assert elsewhere.archive(read_study(path).cells(), tmp_path / "b.jsonl") == 2
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()


def test_one_run_under_two_names_is_run_once(stand_in: None, tmp_path: Path) -> None:
    path = study_file(tmp_path, {"first": "run", "second": "run"}, [1])
    study, store = read_study(path), Store(tmp_path / "store")
    both = study.groups[0].cells
    assert [cell.method for cell in both] == ["first", "second"] and both[0].digest == both[1].digest
    assert run_cells(study.cells(), store, say=lambda line: None) == []
    assert [starts(store, cell) for cell in both] == [1, 0]
    assert store.archive(study.cells(), tmp_path / "a.jsonl") == 1
    for later in (store, Store(tmp_path / "store"), Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"])):
        found = [later.finished(cell) for cell in both]
        assert all(f is not None and f.run.summary()["AP"] == pytest.approx(0.1) for f in found)
    assert Store(tmp_path / "elsewhere", [tmp_path / "a.jsonl"]).archive([both[1]], tmp_path / "b.jsonl") == 1


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        Store(tmp_path, [tmp_path / "a.jsonl"])


def test_a_torn_note_of_a_start_is_told_and_the_cell_goes_on(stand_in: None, tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "fail"}, [1]), Store(tmp_path / "store")
    run_cells([cell], store, say=lambda line: None)
    (store.folder(cell) / "started.json").write_text("")
    with pytest.warns(UserWarning, match=r"seed_1/started\.json.*seconds that the cell has taken so far are lost"):
        run_cells([cell], store, say=lambda line: None)
    assert starts(store, cell) == 2, "its configuration is the one that stands beside the note"
    (store.folder(cell) / "started.json").write_text("{")
    (changed,) = cells_of(tmp_path, {"good": "run"}, [1])
    with pytest.warns(UserWarning, match=r"started\.json"):
        run_cells([changed], store, say=lambda line: None)
    assert starts(store, changed) == 1 and (store.root / "default/good/seed_1.other1/starts").read_text() == "xx"


def test_a_run_that_was_killed_before_its_end_was_noted(stand_in: None, tmp_path: Path) -> None:
    (cell,), store = cells_of(tmp_path, {"good": "run"}, [1]), Store(tmp_path / "store")
    run_cells([cell], store, say=lambda line: None)
    (store.folder(cell) / "cell.json").unlink()
    lines: list[str] = []
    assert run_cells([cell], Store(tmp_path / "store"), say=lines.append) == []
    assert starts(store, cell) == 1 and any("had been finished" in line for line in lines)
    assert Store(tmp_path / "store").finished(cell) is not None


def test_one_real_cell_with_a_resume(tmp_path: Path) -> None:
    """`hpa-lightning fit` as the runner starts it; the second time from the checkpoint that the first left behind."""
    arguments: dict[str, Any] = {"seed": "${seed}", "steps": 1, "train_size": 16, "test_size": 2}
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
    assert run_cells([cell], store, jobs=1, say=lambda line: None) == []
    finished = store.finished(cell)
    assert finished is not None and finished.run.steps == [-1, 0, 1] and finished.run.seed == 3
    assert finished.run.method == "Plain"

    (store.folder(cell) / "cell.json").unlink()
    checkpoint, _ = newest_checkpoint([store.folder(cell)])
    assert checkpoint is not None
    half = checkpoint.with_name("later.ckpt")  # as a full disk or a lost machine leaves it
    half.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    lines: list[str] = []
    assert run_cells([cell], store, jobs=1, say=lines.append) == []
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
    assert list((tmp_path / "runs").rglob("log.txt"))


def test_a_store_s_files_lead_nowhere_else(stand_in: None, tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, {"one": "finish"}, [1])
    store = Store(tmp_path / "store")
    run_cells([cell], store, 1, lambda line: None)
    mark = store.folder(cell) / "cell.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "key": "../../elsewhere"}))
    with pytest.raises(ValueError, match=r"'../../elsewhere'; expected a path within"):
        Store(tmp_path / "store").finished(cell)


def test_a_step_that_was_evaluated_twice_counts_once(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from hpa_lightning.study.runner import _steps

    where = SimpleNamespace(folder=lambda cell: tmp_path)
    assert _steps(None, where) == "starts"
    lines = [f'{{"event": "time", "step": {step}, "phase": "evaluate", "seconds": 1.0}}' for step in (-1, 0, -1, 0, 1)]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert _steps(None, where) == "2 tasks done"


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
