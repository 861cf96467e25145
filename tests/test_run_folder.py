"""One run in a folder: locks, identities, what a second fit is told, and torn checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from support.resumed_streams import fit, plain, write_stream
from support.torn_checkpoints import save

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.cli import main
from hpa_lightning.results.result_file import ResultWriter, read_results
from hpa_lightning.run_folder import check_new_run, claim_folder, lock_folder, new_identity, unlock_folder

SCORE = {"event": "score", "step": 0, "after": "a", "set": "a", "kind": "task", "metric": "exact_match"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path)


def write_run(where: Path, finished: bool) -> None:
    writer = ResultWriter(where / "results.jsonl")
    writer.write({"event": "run", "method": "m", "seed": 0, "tasks": ["a"], "sets": [{"name": "a", "kind": "task"}]})
    if finished:
        writer.write({**SCORE, "score": 0.5, "n": 2})


def test_what_a_new_run_is_told(tmp_path: Path) -> None:
    check_new_run(tmp_path)
    write_run(tmp_path, finished=False)
    (tmp_path / "metrics.csv").write_text("step")
    with pytest.warns(UserWarning, match=r"interrupted run without a checkpoint.*interrupted_1"):
        check_new_run(tmp_path, logs=True)
    assert (tmp_path / "interrupted_1" / "results.jsonl").is_file() and not (tmp_path / "metrics.csv").exists()
    write_run(tmp_path, finished=False)
    with pytest.warns(UserWarning, match="interrupted_2"):  # the first one's stay
        check_new_run(tmp_path)
    write_run(tmp_path, finished=False)
    save(tmp_path / "checkpoints" / "epoch=0.ckpt", 0)
    with pytest.raises(ValueError, match=r"interrupted run \(nothing was scored on a .*Continue it.*epoch=0\.ckpt"):
        check_new_run(tmp_path)
    ResultWriter(tmp_path / "results.jsonl").write({**SCORE, "score": 0.5, "n": 2})
    with pytest.raises(ValueError, match="holds a finished run, which is not overwritten"):
        check_new_run(tmp_path)


def test_claims(tmp_path: Path) -> None:
    one, two = new_identity(), new_identity()
    claim_folder(tmp_path, one, resumed=False)
    claim_folder(tmp_path, one, resumed=True)
    with pytest.raises(ValueError, match="the checkpoint is of another run"):
        claim_folder(tmp_path, two, resumed=True)
    write_run(tmp_path, finished=True)
    claim_folder(tmp_path, one, resumed=True)
    with pytest.raises(ValueError, match="continue with other data or settings in another folder"):
        claim_folder(tmp_path, one, resumed=True, changed=True)
    with pytest.raises(ValueError, match="finished run"):
        claim_folder(tmp_path, two, resumed=False)
    (tmp_path / "run.json").write_text("")  # torn: the results still tell
    with pytest.raises(ValueError, match="finished run"):
        claim_folder(tmp_path, two, resumed=False)
    claim_folder(tmp_path, one, resumed=True)
    unlock_folder(tmp_path)


def test_two_processes_do_not_fit_into_one_folder(tmp_path: Path) -> None:
    lock_folder(tmp_path)
    other = "from pathlib import Path; from hpa_lightning.run_folder import lock_folder; "
    other += f"lock_folder(Path({str(tmp_path)!r}))"
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert refused.returncode == 1 and "another process fits into" in refused.stderr
    unlock_folder(tmp_path)
    assert subprocess.run([sys.executable, "-c", other]).returncode == 0, "and its end frees the folder"


def test_a_finished_run_is_kept_and_resumes_go_into_their_own_folder(folder: Path) -> None:
    def callbacks(name: str) -> list[L.Callback]:
        saver = ModelCheckpoint(folder / name, filename="{epoch}", save_top_k=-1)
        return [SequentialTuning(), TaskEvaluation(report=False, initial=False), saver]

    fit(folder / "run", callbacks("run"), plain(folder))
    before = (folder / "run" / "results.jsonl").read_bytes()
    with pytest.raises(Exception, match="holds a finished run, which is not overwritten"):
        fit(folder / "run", callbacks("again"), plain(folder))
    fit(folder / "other", callbacks("other"), plain(folder))
    with pytest.raises(Exception, match="the checkpoint is of another run"):
        fit(folder / "run", callbacks("run"), plain(folder), folder / "other" / "epoch=0.ckpt")
    assert (folder / "run" / "results.jsonl").read_bytes() == before
    fit(folder / "run", callbacks("run"), plain(folder), folder / "run" / "epoch=0.ckpt")
    scores = [event for event in read_results(folder / "run") if event["event"] == "score"]
    assert [event["step"] for event in scores] == [0, 0, 0, 1, 1, 1]


def test_last_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``save_last`` Lightning starts anew here; a torn checkpoint ends it."""
    config = yaml.safe_load((Path(__file__).parents[1] / "examples" / "nano_sequential.yaml").read_text())
    sizes = {"steps": 1, "train_size": 16, "test_size": 2, "task_order": ["charts", "digits"]}
    config["data"]["init_args"] |= sizes
    config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    arguments = ["fit", "--config", str(path), "--ckpt_path", "last"]
    with pytest.raises(SystemExit, match="1 of 2 tasks"):
        main([*arguments, "--trainer.max_steps", "1"])  # starts, since there is nothing yet, and is cut short
    with pytest.raises(SystemExit, match=r"holds an interrupted run .*--ckpt_path last"):
        main(arguments[:3])
    whole = next((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    half = whole.with_name("epoch=9.ckpt")
    half.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(SystemExit, match=r"epoch=9\.ckpt is unusable: it is cut off.* to continue from is .*epoch=0"):
        main([*arguments[:3], "--ckpt_path", str(half)])
    with pytest.warns(UserWarning, match=r"epoch=9\.ckpt is left out: it is cut off"):
        main(arguments)
    events = read_results(tmp_path / "run")
    assert [event["step"] for event in events if event["event"] == "resume"] == [1]
    assert [event["event"] for event in events].count("end") == 1
    with pytest.raises(SystemExit, match="holds a finished run"):
        main(arguments[:3])
