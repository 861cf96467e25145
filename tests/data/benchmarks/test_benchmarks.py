"""Folders of whole benchmarks: the descriptions that come along, on files laid out as they were released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.benchmark_folders import WRITERS, write_hpa, write_mllm_dcl
from support.tiny_mllms import tiny_llava

from hpa_lightning.cli import main
from hpa_lightning.data import BenchmarkDataModule, RecordSet
from hpa_lightning.data.benchmarks import BENCHMARKS, read_benchmark
from hpa_lightning.data.checking import check_stream


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_released_folder_is_read_whole(benchmark: str, tmp_path: Path) -> None:
    WRITERS[benchmark](tmp_path)
    stream = BenchmarkDataModule(benchmark, str(tmp_path))
    parts = check_stream(stream)
    assert not any(part.problems or part.warnings for part in parts), [part.problems for part in parts]
    assert len(parts) == 2 * len(stream.tasks) and all(part.records and part.images for part in parts)
    stream.setup("fit")  # every image is found, no test record is trained on


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


def test_the_check_command_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mllm_dcl(tmp_path)
    processor = tmp_path / "processor"
    tiny_llava()[1].save_pretrained(processor)
    command = ["data", "check", "--benchmark", "mllm-dcl", "--folder", str(tmp_path), "--processor", str(processor)]
    main(command)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 11 and all(line.endswith(" 0") for line in lines[1:])
    (tmp_path / "Med/images/1.png").unlink()
    (tmp_path / "Fin/test.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(command)
    printed = capsys.readouterr().out
    assert stopped.value.code == 1 and "task Med, train: 4 missing images" in printed and "no data file" in printed
    write_mllm_dcl(tmp_path)
    tests = tmp_path / "RS" / "test.json"
    tests.write_text(json.dumps([*json.loads(tests.read_text()), json.loads(tests.read_text())[0]]))
    main(command)  # a question that is asked twice is a warning, and no failure
    assert "1 repeated records (a warning)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "check", "--benchmark", "mllm-dcl"])
    assert "belong together" in capsys.readouterr().err


def test_a_description_of_ones_own(tmp_path: Path) -> None:
    write_mllm_dcl(tmp_path / "data set")
    task = {"name": "one", "train": "${folder}/RS/train.json", "test": "${folder}/RS/test.json"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "tasks": [{**task, "image_folder": "${folder}/RS", "steps": 3}]}))
    stream = BenchmarkDataModule(str(path), str(tmp_path / "data set"), train_batch_size=2, seed=5)
    stream.setup("fit")
    assert stream.tasks[0].steps == 3 and (stream.train_batch_size, stream.seed) == (2, 5)


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
    with pytest.raises(ValueError, match=r"mine\.yaml' is no YAML"):
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
    for text, message in (("\n".join(lines), "more than 1000000 values"), ("a: &a [*a]", "within its own anchor")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
            read_benchmark(str(path), tmp_path)
