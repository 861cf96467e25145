"""The demo: every method that it names runs, and one table comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import pytest

from hpa_lightning import demo
from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.cli import main
from hpa_lightning.demo import METHODS
from hpa_lightning.results import RunResults


def quick(make: Callable[[], list[L.Callback]]) -> list[L.Callback]:
    """The callbacks of a method, with small calibration sets."""
    callbacks = make()
    for callback in callbacks:
        if hasattr(callback, "calibration"):
            callback.calibration = CalibrationSettings(safety_samples=8, task_samples=8)
    return callbacks


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"steps": 2, "train_size": 16, "test_size": 4, "calibration_size": 8, "task_order": ["charts", "digits"]}
    monkeypatch.setattr(demo, "NanoDataModule", partial(demo.NanoDataModule, **small))
    monkeypatch.setattr(
        demo, "METHODS", {name: (label, partial(quick, make)) for name, (label, make) in METHODS.items()}
    )
    main(["demo", "--output", str(tmp_path), "--seeds", "7", "--methods", *demo.METHODS])
    lines = capsys.readouterr().out.splitlines()
    runs = {name: RunResults.from_file(tmp_path / name / "seed_7") for name in demo.METHODS}
    for name, (label, _) in demo.METHODS.items():
        assert runs[name].method == label and runs[name].seed == 7 and runs[name].steps == [-1, 0, 1]
        assert any(line.startswith(label) for line in lines)
    assert not runs["sequential"].events("retention")
    assert (tmp_path / "report" / "report.html").is_file()


def test_settings_of_the_methods_arrive_in_the_runs() -> None:
    (fusion,) = demo.METHODS["post-training"][1]()
    (paper,) = demo.METHODS["post-training-paper"][1]()
    assert fusion.calibration == demo.NANO_CALIBRATION and paper.calibration.safety_samples == 8
    assert fusion.retention == demo.NANO_POST_TRAINING and paper.retention == RetentionSettings()
    assert demo.METHODS["in-training"][1]()[0].retention == demo.NANO_IN_TRAINING
    assert set(demo.DEMO_METHODS) < set(demo.METHODS)
