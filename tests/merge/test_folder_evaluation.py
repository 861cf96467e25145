"""The configuration that scores a folder: the fit's data and judges, none of what belongs to the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.merge.folder_evaluation import FolderEvaluation

CONFIG: dict[str, Any] = {
    "seed_everything": 7,
    "model": {
        "class_path": "hpa_lightning.modules.NanoModule",
        "init_args": {"learning_rate": 1e-3, "generation": {"num_beams": 2}, "lora": {"rank": 2}, "dtype": None},
    },
    "data": {"class_path": "hpa_lightning.data.nano.NanoDataModule", "init_args": {"test_size": 4}},
    "trainer": {
        "callbacks": [{"class_path": "TaskEvaluation"}],
        "max_steps": 5,
        "devices": 4,
        "precision": "bf16-true",
    },
}


def evaluation(folder: Path, **changes: Any) -> FolderEvaluation:
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return FolderEvaluation(path)


def test_data_seed_and_precision_stay_and_the_fit_s_own_is_left_out(tmp_path: Path) -> None:
    found = evaluation(tmp_path).of("merged", tmp_path / "out")
    assert found["data"] == CONFIG["data"] and found["seed_everything"] == 7
    trainer = found["trainer"]
    assert trainer["precision"] == "bf16-true" and trainer["devices"] == 1 and not trainer["enable_checkpointing"]
    assert not {"callbacks", "max_steps"} & trainer.keys()
    assert trainer["logger"]["init_args"]["save_dir"] == str(tmp_path / "out")


def test_a_module_that_takes_no_folder_gives_way_to_the_one_that_does(tmp_path: Path) -> None:
    model = evaluation(tmp_path).of("merged", tmp_path / "out")["model"]
    assert model["class_path"] == "hpa_lightning.modules.MLLMModule"
    assert model["init_args"] == {"model": "merged", "generation": {"num_beams": 2}}
    assert evaluation(tmp_path, model=None).of("merged", tmp_path / "out")["model"]["init_args"] == {"model": "merged"}


def test_a_configuration_without_data_is_refused(tmp_path: Path) -> None:
    for data in (None, ["a"]):
        with pytest.raises(ValueError, match=r"fit\.yaml has no section data; expected a configuration of fit or test"):
            evaluation(tmp_path, data=data)
