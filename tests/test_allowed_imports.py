"""No code of another package runs because a file names it, wherever the name stands."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning import data
from hpa_lightning.allowed_imports import LIMIT, imports_limited
from hpa_lightning.cli.study import PACKAGES
from hpa_lightning.data import BenchmarkDataModule, RecordSet, Task
from hpa_lightning.data.benchmarks import read_benchmark
from hpa_lightning.lightning_commands import tuning_cli

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def thing(*arguments, **settings): pass
class Thing: pass
"""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once the module ``downloaded`` beside it was imported."""
    (tmp_path / "downloaded.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "ran"
    sys.modules.pop("downloaded", None)


def record_sets() -> list[type]:
    found = [getattr(data, name) for name in data.__all__]
    return [one for one in found if isinstance(one, type) and issubclass(one, RecordSet) and one is not RecordSet]


def spellings() -> Iterator[Any]:
    for name in ("downloaded.Thing", "downloaded.thing"):
        yield from (name, [name], {"a": name}, {"class_path": name}, [{"class_path": name}], {"callable": name})


def descriptions() -> Iterator[dict[str, Any]]:
    """One where every field of a task, and of every set that comes with the package, names the module."""
    for named in spellings():
        for field in dataclasses.fields(Task):
            yield {"name": "t", "train": "a.json", "test": "b.json", field.name: named}
    for kind in record_sets():
        path = f"{kind.__module__}.{kind.__qualname__}"
        fields = [field.name for field in dataclasses.fields(kind)]
        for named in ("downloaded.Thing", ["downloaded.thing"]):
            arguments = dict.fromkeys(fields, named)
            yield {"name": "t", "train": {"class_path": path, "init_args": arguments}, "test": "b.json"}
    yield {"name": "t", "train.class_path": "downloaded.Thing", "test": "b.json"}


def test_a_description_of_a_benchmark(ran: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert len(record_sets()) > 10
    for entry in descriptions():
        path.write_text(yaml.safe_dump({"tasks": [entry]}))
        with suppress(ValueError):
            read_benchmark(str(path), tmp_path)
        assert not ran.exists(), entry


def test_a_class_in_a_list_is_told(ran: Path, tmp_path: Path) -> None:
    """Where records may stand, jsonargparse takes a text for the class of one."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"tasks": [{"name": "t", "train": ["downloaded.Thing"], "test": "b.json"}]}))
    with pytest.raises(ValueError, match=r"names the class 'downloaded.Thing'.*would run its code.*--imports downl"):
        read_benchmark(str(path), tmp_path)
    assert not ran.exists()


def fits() -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to name a class of another package in the configuration of a fit."""
    yield "model", {"model": "downloaded.Thing"}
    yield "model in another file", {"model": "sub.yaml"}
    yield "dotted key", {"model.class_path": "downloaded.Thing"}
    yield "data", {"data": "downloaded.Thing"}
    yield "one callback", {"trainer": {"callbacks": "downloaded.Thing"}}
    yield "callbacks", {"trainer": {"callbacks": ["downloaded.Thing"]}}
    yield "plugins", {"trainer": {"plugins": "downloaded.Thing"}}
    optimizer = {"model": "x", "optimizer": "downloaded.thing"}
    yield "a callable", {"model": {"class_path": "hpa_lightning.modules.MLLMModule", "init_args": optimizer}}
    tasks = {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": {"tasks": ["downloaded.Thing"]}}
    yield "a task", {"data": tasks}


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize("change", [change for _, change in fits()], ids=[how for how, _ in fits()])
def test_a_fit_of_a_study(change: dict[str, Any], ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": {"class_path": "hpa_lightning.modules.NanoModule"}, "trainer": {"accelerator": "cpu"}, **change}
    (tmp_path / "sub.yaml").write_text("class_path: downloaded.Thing\n")
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv(LIMIT, ",".join(PACKAGES))
    with pytest.raises(SystemExit, match=r"downloaded") as stopped:
        tuning_cli(["fit", "--config", str(tmp_path / "fit.yaml")])
    assert stopped.value.code == 2 and not ran.exists()
    monkeypatch.delenv(LIMIT)
    with pytest.raises(SystemExit):
        tuning_cli(["fit", "--config", str(tmp_path / "fit.yaml")])
    assert ran.exists(), "what was refused above is a way to run it"


def test_a_limit_is_not_lifted_from_within(ran: Path, tmp_path: Path) -> None:
    """A study that may not name a package cannot name it to a datamodule that would allow it."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"tasks": [{"name": "t", "train": {"class_path": "downloaded.Thing"}}]}))
    with imports_limited(PACKAGES, "the study"), pytest.raises(ValueError, match="the study names the class"):
        BenchmarkDataModule(str(path), str(tmp_path), imports=["downloaded"])
    assert not ran.exists()
    with pytest.raises(ValueError):
        BenchmarkDataModule(str(path), str(tmp_path), imports=["downloaded"])
    assert ran.exists()
