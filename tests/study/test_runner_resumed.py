"""A cell that was killed after the last batch of its last task is finished by the same command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.forked_programs import fork_programs_of

from hpa_lightning.study import Store, read_study, run_cells, runner

TESTS = Path(__file__).parent.parent

# Stands in for `hpa-lightning fit`: a stream on a tiny LLaVA model, killed in its last task's end the first time.
SCRIPT = """
import os, sys, yaml
from pathlib import Path
from lightning.pytorch.callbacks import ModelCheckpoint
from support.multimodal_fits import method, module, stream, trainer
from hpa_lightning.callbacks import SequentialTuning, TaskCallback, TaskEvaluation

folder = Path(yaml.safe_load(Path(sys.argv[1]).read_text())["folder"])
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None

class Dies(TaskCallback):
    end_order = 1

    def on_task_end(self, trainer, pl_module, task):
        if task.index == 1 and checkpoint is None:
            os._exit(137)

save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1)
callbacks = [Dies(), SequentialTuning(), *method("post_training"), TaskEvaluation(report=False), save]
trainer(folder, callbacks, enable_checkpointing=True).fit(module(), stream(evaluated=True), ckpt_path=checkpoint)
"""


def test_the_last_task_is_fused_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)
    places = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))

    def command(config: Path, checkpoint: Path | None) -> list[str]:
        return [sys.executable, str(script), str(config), *([str(checkpoint)] if checkpoint else [])]

    monkeypatch.setattr(runner, "_command", command)
    fork_programs_of(runner, monkeypatch)
    study: dict[str, Any] = {
        "base": {"folder": "${folder}", "title": "${title}", "seed": "${seed}"},
        "methods": {"hpa": {"title": "HPA"}},
        "groups": {"all": {"title": "All", "methods": ["hpa"], "seeds": [1]}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    cells, store, said = read_study(path).cells(), Store(tmp_path / "store"), []  # type: ignore[var-annotated]
    assert run_cells(cells, store, say=said.append) == cells, said
    assert "exit status 137" in "\n".join(said)
    assert run_cells(cells, store, say=said.append) == [], said
    finished = store.finished(cells[0])
    assert finished is not None and finished.run.steps == [-1, 0, 1] and "tasks)" not in finished.run.method
    assert {event["step"] for event in finished.run.events("retention")} == {0, 1}
