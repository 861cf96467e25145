"""TaskEvaluation: the matrix is filled for every architecture, in whatever order the callbacks stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from support.multimodal_fits import method, module, stream, trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.results.result_file import read_results
from hpa_lightning.results.run_results import RunResults


def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    states = []
    for order in ((0, 1, 2), (2, 1, 0)):
        callbacks = [SequentialTuning(), *method("post_training"), TaskEvaluation(report=False)]
        tuned = module()
        trainer(tmp_path / str(order), [callbacks[index] for index in order]).fit(tuned, stream(evaluated=True))
        scores = RunResults.from_file(tmp_path / str(order)).matrix()
        states.append((tuned.state_dict(), scores))
    for name, expected in states[0][0].items():
        assert torch.equal(expected, states[1][0][name]), name
    assert (states[0][1] == states[1][1]).all()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("llava", "in_training"), ("qwen2_5_vl", "post_training"), ("idefics3", "in_training"), ("timm", "post_training")],
)
def test_every_architecture_fills_the_matrix(architecture: str, name: str, tmp_path: Path) -> None:
    callbacks = [SequentialTuning(), *method(name, architecture), TaskEvaluation(method=name)]
    logger = CSVLogger(tmp_path, name="run", version=0)
    trainer(tmp_path, callbacks, logger=logger).fit(module(True, architecture), stream(architecture, evaluated=True))
    folder = tmp_path / "run" / "version_0"
    results = RunResults.from_file(folder)
    assert results.tasks == ["first", "second"] and results.method == name
    assert results.steps == [-1, 0, 1]
    assert ((results.matrix() >= 0) & (results.matrix() <= 1)).all()
    retention = [event for event in read_results(folder / "results.jsonl") if event["event"] == "retention"]
    assert {event["step"] for event in retention} == {0, 1}
    assert {event["layer"] for event in retention} == {1, 2} and len(retention) == 2 * 14
    assert (folder / "report" / "report.html").stat().st_size > 20_000
    assert len(list((folder / "predictions").glob("*.jsonl"))) == 3 * 4
    assert "evaluation/average_performance" in (folder / "metrics.csv").read_text()
