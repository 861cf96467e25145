"""Folders of whole benchmarks, on files laid out as they were released."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.benchmark_folders import WRITERS, write_mllm_dcl
from support.tiny_mllms import tiny_llava

from hpa_lightning.cli import main
from hpa_lightning.data import BenchmarkDataModule
from hpa_lightning.data.benchmarks import BENCHMARKS
from hpa_lightning.data.checking import check_stream


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_released_folder_is_read_whole(benchmark: str, tmp_path: Path) -> None:
    WRITERS[benchmark](tmp_path)
    stream = BenchmarkDataModule(benchmark, str(tmp_path))
    parts = check_stream(stream)
    assert not any(part.problems or part.warnings for part in parts), [part.problems for part in parts]
    assert len(parts) == 2 * len(stream.tasks) and all(part.records and part.images for part in parts)
    stream.setup("fit")  # every image is found, no test record is trained on


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
