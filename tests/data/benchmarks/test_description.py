"""Descriptions of benchmarks: those that come along, broken ones, and what they may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.benchmark_folders import write_hpa, write_mllm_dcl

from hpa_lightning.data import RecordSet
from hpa_lightning.data.benchmarks import read_benchmark


def test_references_are_those_that_the_field_scores_against(tmp_path: Path) -> None:
    write_hpa(tmp_path)
    tasks = {task.name: task for task in read_benchmark("hpa", tmp_path)}
    assert list(tasks) == ["AD", "ImageNet", "Flickr30k", "Fin", "ScienceQA", "TextVQA"]  # the paper's order
    captions, texts = tasks["Flickr30k"].test, tasks["TextVQA"].test
    assert isinstance(captions, RecordSet) and isinstance(texts, RecordSet)
    assert [record.answers for record in captions.read()] == [tuple(f"wall {j}" for j in range(5))] * 4
    assert [record.answers for record in texts.read()] == [("one",) * 10] * 3
    coin = read_benchmark("coin", tmp_path / "CoIN")
    assert {task.name: task.metric for task in coin}["Grounding"] == "grounding_accuracy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": {}}, "has \\['tasks'\\]; expected `tasks`, a list"),
        ({"tasks": [], "order": []}, "has \\['order', 'tasks'\\]"),
        ({"tasks": [{"name": "a", "train": "${root}/a.json", "test": "b"}]}, r"nothing fills \$\{root\}"),
        ({"tasks": [{"name": "a", "train": "a.json"}]}, "mine.yaml.*test"),
        ({"tasks": [{"name": "a", "train": "a", "test": "b", "metrics": "c"}]}, "mine.yaml.*metrics"),
    ],
)
def test_broken_descriptions_are_told(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_benchmark(str(path), tmp_path)


def test_tasks_of_other_benchmarks(tmp_path: Path) -> None:
    write_mllm_dcl(tmp_path / "mine" / "dcl")
    path = tmp_path / "mine.yaml"
    entry = {"benchmark": "mllm-dcl", "folder": "${folder}/dcl", "task": "Fin"}
    path.write_text(yaml.safe_dump({"tasks": [entry]}))
    (task,) = read_benchmark(str(path), tmp_path / "mine")
    assert task == read_benchmark("mllm-dcl", tmp_path / "mine" / "dcl")[-1]
    path.write_text(yaml.safe_dump({"tasks": [{**entry, "task": "Law"}]}))
    with pytest.raises(ValueError, match=r"'mllm-dcl' has no task 'Law'; it has \['RS', 'Med'"):
        read_benchmark(str(path), tmp_path / "mine")


def test_a_description_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [")
    with pytest.raises(ValueError, match=r"mine\.yaml' is not valid YAML"):
        read_benchmark(str(path), tmp_path)


def test_unknown_names_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark 'UCIT'; expected one of ucit, mllm-dcl, coin, hpa"):
        read_benchmark("UCIT", tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        read_benchmark("ucit", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "task",
    [
        {"train": {"class_path": "downloaded_module.Set"}},
        {"train": [{"class_path": "downloaded_module.Set"}]},
        {"class_path": "downloaded_module.Set"},
        {
            "train": {
                "class_path": "hpa_lightning.data.TextVQA",
                "init_args": {"questions": {"class_path": "downloaded_module.X"}},
            }
        },
    ],
)
def test_a_description_imports_no_other_package(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "downloaded_module.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "from dataclasses import dataclass\nfrom hpa_lightning.data import RecordSet\n"
        "@dataclass\nclass Set(RecordSet):\n    def read(self):\n        return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"tasks": [{"name": "a", "train": "a.json", "test": "b.json", **task}]}))
    with pytest.raises(ValueError, match=r"downloaded_module.*would run its code.*allow the package with imports"):
        read_benchmark(str(path), tmp_path)
    assert not (tmp_path / "ran").exists()
    if task == {"train": {"class_path": "downloaded_module.Set"}}:
        (read,) = read_benchmark(str(path), tmp_path, imports=["downloaded_module"])
        assert type(read.train).__name__ == "Set"


def test_yaml_that_grows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    for text, message in (("\n".join(lines), "more than 1000000 values"), ("a: &a [*a]", "inside its own anchor")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
            read_benchmark(str(path), tmp_path)
