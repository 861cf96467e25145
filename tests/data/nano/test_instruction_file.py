"""The file that filters are tried on, and the way from it over the filter to a fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hpa_lightning.cli import main
from hpa_lightning.data import read_records
from hpa_lightning.data.nano import instruction_file
from hpa_lightning.filtering import PhraseFilter, filter_data
from hpa_lightning.results.run_results import RunResults


def test_the_filter_finds_the_harmful_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instruction_file.main(["--out", str(tmp_path / "nano"), "--count", "90", "--harmful", "12"])
    path = tmp_path / "nano" / "train.json"
    assert capsys.readouterr().out.strip() == str(path)
    records = read_records(path)
    assert len(records) == 102 and all(Path(image).is_file() for record in records for image in record.images)
    phrases = str(tmp_path / "nano" / "harm.txt")
    dropped = {}
    for role in ("user", "assistant"):
        outcome = filter_data(path, {"phrases": PhraseFilter([phrases], roles=[role])}, tmp_path / role)
        dropped[role] = {row["id"] for row in json.loads(outcome.dropped.read_text())}
    harmful = {record.id for record in records if record.id.startswith("injected")}
    # A third of the requests names the harm; the pictures' harm is in no question, but in the answers that comply.
    assert len(harmful) == 12 and len(dropped["user"] & harmful) == 4 and harmful <= dropped["assistant"]


def test_a_stage_of_the_adaptation_on_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    instruction_file.write_instructions("nano", count=30, harmful=6)
    given = ["--input", "nano/train.json", "--phrases", "nano/harm.txt", "--output", "filtered"]
    main(["data", "filter", *given])
    task = {"name": "instructions", "train": "filtered/kept.json", "image_folder": "nano", "steps": 2}
    data = {"tasks": [{**task, "test": "filtered/dropped.json"}], "train_batch_size": 8}
    config = {
        "model": {
            "class_path": "hpa_lightning.modules.NanoAdaptationModule",
            "init_args": {"trainable": {"projector": True}},
        },
        "data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": data},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": -1,
            "reload_dataloaders_every_n_epochs": 1,
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "run", "name": "", "version": ""},
            },
            "callbacks": [
                {"class_path": "hpa_lightning.callbacks.SequentialTuning"},
                {"class_path": "hpa_lightning.callbacks.TaskEvaluation"},
            ],
        },
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "fit.yaml"])
    assert RunResults.from_file("run").steps == [-1, 0]
