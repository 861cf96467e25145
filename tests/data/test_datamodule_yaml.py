"""A path in YAML stays a path, whatever the file holds, and no data file is opened before `setup`."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from support.tiny_mllms import picture

from hpa_lightning.callbacks.baselines import SafetyLayerFreezing
from hpa_lightning.data import BenchmarkDataModule, CVITDataModule, Record, XSTest

CHAT = [
    {"messages": [{"role": "user", "content": f"Is it {i}?"}, {"role": "assistant", "content": "yes"}]} for i in (1, 2)
]
TURNS = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "yes"}]
LLAVA = [{"id": name, "image": f"{name}.png", "conversations": TURNS} for name in ("a", "b")]
# Records as jsonargparse itself would read them.
RECORDS = [{"id": "0", "messages": [{"role": "user", "content": [{"type": "text", "text": "yes"}]}]}]


@pytest.fixture(
    params=[CHAT, LLAVA, RECORDS, {"class_path": "hpa_lightning.data.XSTest"}], ids=lambda rows: str(rows)[:16]
)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(request.param))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all files that are opened."""
    names: list[str] = []
    for module in (builtins, io):
        before = module.open

        def noted(file: Any, *arguments: Any, before: Any = before, **options: Any) -> Any:
            names.append(str(file))
            return before(file, *arguments, **options)

        monkeypatch.setattr(module, "open", noted)
    yield names


def parsed(arguments: list[str], datamodule: type = CVITDataModule, model: type[LightningModule] = BoringModel) -> Any:
    return LightningCLI(
        model,
        datamodule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=[*arguments, "--trainer.logger", "false"],
    )


def everywhere(path: str) -> dict[str, Any]:
    return {
        "tasks": [{"name": "a", "train": path, "test": path, "calibration": path}],
        "safety_sets": [{"name": "s", "kind": "safety", "data": path, "judge": path}],
        "harmful_calibration": path,
        "harmful_injection": {"data": path},
        "safety_replay": {"data": path},
        "predict_data": path,
    }


def test_a_path_stays_a_path_in_every_argument_and_nothing_is_read(
    file: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpa_lightning.data.tasks.metric_of", lambda _: None)  # it reads the rules of the judge
    callback = {
        "class_path": "hpa_lightning.callbacks.baselines.SafetyLayerFreezing",
        "init_args": {"normal_data": str(file)},
    }
    config = {
        "trainer": {"callbacks": [callback]},
        "data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": everywhere(str(file))},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    cli = parsed(["--config", str(tmp_path / "fit.yaml")])
    data, path = cli.datamodule, str(file)
    (task,), (safety,) = data.tasks, data.safety_sets
    assert [task.train, task.test, task.calibration] == [path] * 3
    assert [safety.data, safety.judge, data.harmful_calibration, data.predict_data] == [path] * 4
    assert [data.harmful_injection.data, data.safety_replay.data] == [path] * 2
    (freezing,) = (one for one in cli.trainer.callbacks if isinstance(one, SafetyLayerFreezing))
    assert freezing.normal_data == path
    assert any(name.endswith("fit.yaml") for name in opened) and path not in opened
    dumped = yaml.safe_load(cli.parser.dump(cli.config))["data"]["init_args"]  # as `config.yaml` of a run
    assert dumped["tasks"][0]["train"] == dumped["harmful_calibration"] == dumped["safety_sets"][0]["data"] == path


METHODS = ("HarmoniousFusion", "FocusPartition", "NullSpaceProjection", "RegressionFusion", "baselines.SafeDelta")


def safety_data_of_the_callbacks(given: Any, folder: Path) -> dict[str, Any]:
    """What each method's callback has when all are given the same in one YAML file."""
    callbacks = [
        {"class_path": f"hpa_lightning.callbacks.{method}", "init_args": {"safety_data": given}} for method in METHODS
    ]
    (folder / "fit.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    tasks = json.dumps([{"name": "a", "train": "t.json", "test": "e.json"}])
    arguments = ["--config", str(folder / "fit.yaml"), "--data", "CVITDataModule", "--data.tasks", tasks]
    found = {type(one).__name__: one for one in parsed(arguments).trainer.callbacks}
    return {method: found[method.rpartition(".")[2]].safety_data for method in METHODS}


def test_the_callbacks_safety_data_is_a_path(file: Path, tmp_path: Path, opened: list[str]) -> None:
    assert safety_data_of_the_callbacks(str(file), tmp_path) == dict.fromkeys(METHODS, str(file))
    assert str(file) not in opened


def test_the_callbacks_safety_data_is_a_published_set(tmp_path: Path) -> None:
    published = {"class_path": "hpa_lightning.data.XSTest", "init_args": {"file": "x.csv"}}
    assert safety_data_of_the_callbacks(published, tmp_path) == dict.fromkeys(METHODS, XSTest("x.csv"))


def test_a_path_on_the_command_line_and_in_a_description(file: Path, tmp_path: Path, opened: list[str]) -> None:
    tasks = json.dumps([{"name": "a", "train": str(file), "test": str(file)}])
    flags = ["--data", "CVITDataModule", "--data.tasks", tasks, "--data.harmful_calibration", str(file)]
    data = parsed(flags).datamodule
    assert [data.tasks[0].train, data.tasks[0].test, data.harmful_calibration] == [str(file)] * 3
    description = tmp_path / "own.yaml"
    description.write_text(
        yaml.safe_dump({"tasks": [{"name": "a", "train": "${folder}/data.json", "test": str(file)}]})
    )
    benchmark = BenchmarkDataModule(str(description), str(tmp_path))
    assert [benchmark.tasks[0].train, benchmark.tasks[0].test] == [str(file)] * 2
    assert str(file) not in opened


def test_chat_and_llava_files_go_through_their_reader(tmp_path: Path) -> None:
    """Not past it: `image_folder` counts, and "yes" stays a text."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        picture(ord(name)).save(tmp_path / "images" / f"{name}.png")
    for name, rows in (("chat", CHAT), ("llava", LLAVA)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    task = {"name": "a", "train": str(tmp_path / "llava.json"), "test": str(tmp_path / "chat.json")}
    settings = {"tasks": [{**task, "image_folder": str(tmp_path / "images")}]}
    config = {"data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": settings}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    data = parsed(["--config", str(tmp_path / "fit.yaml")]).datamodule
    data.trainer = None
    data.setup()
    train = data._source.training(data.tasks[0])
    assert [record.images for record in train] == [(str(tmp_path / "images" / f"{name}.png"),) for name in ("a", "b")]
    assert [record.prompt_and_references()[1] for record in train] == [("yes",)] * 2


def test_sets_and_records_in_yaml_still_work(tmp_path: Path) -> None:
    published = {"class_path": "hpa_lightning.data.XSTest", "init_args": {"file": "x.csv", "label": "unsafe"}}
    settings = everywhere("x.json") | {"harmful_calibration": published, "predict_data": RECORDS}
    settings["safety_sets"] = [{"name": "s", "kind": "safety", "data": published}]
    config = {"data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": settings}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    data = parsed(["--config", str(tmp_path / "fit.yaml")]).datamodule
    assert data.harmful_calibration == data.safety_sets[0].data == XSTest("x.csv", "unsafe")
    assert [type(record) for record in data.predict_data] == [Record]
    assert data.predict_data[0].prompt == "yes"
