"""`hpa-lightning data check` on files with every fault that it looks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.tiny_mllms import tiny_llava, tiny_timm

from hpa_lightning.cli import main
from hpa_lightning.data import CVITDataModule, EncodedImage, EvaluationSet, SafetyReplay, Task, read_records
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.record import assistant_turn


def row(number: int, image: str | None = "a.png", answer: str | None = "red") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"What is {number}?"}]
    if answer is not None:
        turns.append({"from": "gpt", "value": answer})
    return {"id": number, **({"image": image} if image else {}), "conversations": turns}


def question(number: int, image: str = "a.png") -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": f"What is {number}?", "answer": "red"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (20, 30)), ("large.png", (200, 200))):
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    good = [row(number) for number in range(4)]
    (tmp_path / "good.json").write_text(json.dumps(good))
    bad = [row(10), row(11, "missing.png"), row(12, "broken.png"), row(13, "large.png"), row(14, answer=None)]
    bad += [{**row(15), "conversations": row(15)["conversations"][::-1]}, row(101)]
    lines = [json.dumps(one) for one in bad]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:2], "{broken", *lines[2:]]))
    (tmp_path / "test.json").write_text(json.dumps([question(100), question(101), question(100)]))
    return tmp_path


def write_config(folder: Path, train: str) -> Path:
    processor = folder / "processor"
    if not processor.exists():
        tiny_llava()[1].save_pretrained(processor)
    task = {"name": "task", "train": str(folder / train), "test": str(folder / "test.json")}
    data = {
        "class_path": "hpa_lightning.data.CVITDataModule",
        "init_args": {
            "tasks": [{**task, "image_folder": str(folder / "images")}],
            "max_length": 64,
            "harmful_calibration": str(folder / "good.json"),
            "harmful_image_folder": str(folder / "images"),
        },
    }
    model = {"class_path": "hpa_lightning.modules.MLLMModule", "init_args": {"model": str(processor)}}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": -1}}))
    return path


def test_every_fault_is_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["data", "check", "--config", str(write_config(folder, "bad.jsonl")), "--max-pixels", "1000"])
    assert exit_status.value.code == 1
    printed = capsys.readouterr().out
    for kind, where in (
        ("2 broken records", "bad.jsonl[2] (line 3): broken JSON"),
        ("2 broken records", "bad.jsonl[6] (line 7): roles are ['assistant', 'user']"),
        ("1 missing images", "missing.png does not exist"),
        ("2 images that cannot be used", "broken.png cannot be read"),
        ("2 images that cannot be used", "large.png has 200 x 200 pixels, more than 1000"),
        ("1 records without an answer", "bad.jsonl[5] (line 6)"),
        ("1 repeated records (a warning)", "test.json[2] repeats test.json[0]"),
        ("1 records that are tested on", "bad.jsonl[7] (line 8) is in task task, test as test.json[1]"),
    ):
        assert kind in printed and where in printed, (kind, printed)
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("harmful calibration ")] == ["0"]
    assert "do not fit the model" not in printed  # nothing is told twice


def test_good_data_pass_and_their_tokens_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test.json").write_text(json.dumps([question(number) for number in range(100, 103)]))
    main(["data", "check", "--config", str(write_config(folder, "good.json")), "--decode", "--tokens", "2"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[-1] for line in lines] == ["Warnings", "0", "0", "0"]
    longest = int(lines[1].split()[-3])
    assert 10 < longest <= 64
    main(["data", "check", "--config", str(write_config(folder, "good.json")), "--no-tokens"])


def test_a_model_built_from_parts_brings_its_own_processor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's tokenizer alone would be taken for that of a model that reads text alone."""
    tiny_timm()[1].save_pretrained(folder / "processor")
    (folder / "test.json").write_text(json.dumps([question(number) for number in range(100, 103)]))
    main(["data", "check", "--config", str(write_config(folder, "good.json"))])
    assert "reads text alone" not in capsys.readouterr().out
    records = read_records(folder / "good.json", folder / "images")
    stream = CVITDataModule([Task("task", records)], processor=folder / "processor")
    assert type(stream.collator.processor) is type(tiny_timm()[1])


def test_long_answers_broken_images_in_memory_and_references(folder: Path) -> None:
    """And a benchmark's test records that its metric could not score."""
    long = read_records(folder / "good.json", folder / "images")
    broken = (folder / "images" / "a.png").read_bytes()
    broken = broken[:33] + b"\x00\x00\x00\x00\x00zzz" + broken[41:]  # a chunk that PIL calls a syntax error
    bytes_ = [replace(long[0], images=(EncodedImage(data, "cell"),)) for data in (b"no image", broken)]
    tests = [replace(record, messages=record.messages[:1], answers=("one",)) for record in long]
    task = Task("task", [replace(long[1], messages=(*long[1].messages[:1], *assistant_turn("red " * 60)))], tests)
    other = Task("other", bytes_, tests, metric="vqa_accuracy")
    stream = CVITDataModule([task, other], processor=tiny_llava()[1], max_length=32, allow_overlap=True)
    train, test, images, votes = check_stream(stream, stream.collator, decode=True)
    assert train.problems == {} and train.tokens[0] > 60
    assert train.warnings["training samples that are cut"] == [f"good.json[1]: {train.tokens[0]} tokens of 32"]
    assert len(train.warnings["records that are tested on"]) == 1 and not test.problems
    assert [len(found) for found in images.problems.values()] == [2]
    assert "cell cannot be read" in str(images.problems["images that cannot be used"])
    assert "VQAAccuracy cannot score it" in str(votes.problems["records without an answer that can be used"])
    with pytest.raises(ValueError, match=r"good.json\[0\]: VQAAccuracy cannot score it"):
        stream.setup("fit")


def test_samples_that_do_not_fit_and_seen_safety_inputs(folder: Path) -> None:
    images = str(folder / "images")
    stream = CVITDataModule(
        [Task("task", str(folder / "good.json"), [], image_folder=images)],
        [EvaluationSet("attack", "safety", read_records(folder / "good.json", images)[:1])],
        processor=tiny_llava()[1],
        max_length=8,
        safety_replay=SafetyReplay(read_records(folder / "good.json", images)[1:]),
    )
    train, test, attack, replayed = check_stream(stream, stream.collator)
    assert "records that are tested on" not in replayed.problems, "what is replayed is not tested on"
    assert len(train.problems["samples that do not fit the model"]) == 4 and "max_length" in str(train.problems)
    assert len(train.problems["records that are tested on"]) == 1
    assert test.problems == {"broken records": ["task task, test holds no records; expected at least one."]}
    assert attack.images == 1 and "4 samples that do not fit" in summary([train])


def test_what_is_no_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {}")
    with pytest.raises(SystemExit, match="no section `data`"):
        main(["data", "check", "--config", str(path)])
    path.write_text("data: {class_path: hpa_lightning.data.CVITDataModule, init_args: {tusks: []}}")
    with pytest.raises(SystemExit, match=r"run\.yaml"):
        main(["data", "check", "--config", str(path)])
    with pytest.raises(SystemExit, match="expected `hpa-lightning data check"):
        main(["data", "chuck"])
