"""Errors inside a processor or a model name the record; bad records can be skipped and counted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from support.foreign_module import quiet_trainer
from support.tiny_mllms import evaluation_records, picture, tiny_llava, tiny_qwen, training_records, write_llava_json

from hpa_lightning.data import CVITDataModule, MLLMCollator, Record, Task
from hpa_lightning.data.bad_records import SkippingCollate, naming_failure, problem_of
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.modules import MLLMModule


def thin(name: str = "thin") -> Record:
    """Of an aspect ratio that Qwen's image processor refuses."""
    return Record(
        name, (*user_turn("What?", 1), *assistant_turn("red")), (picture(1, 2, 700),), source=f"{name}.json[0]"
    )


def surrogate() -> Record:
    return Record("lone", (*user_turn("What is \ud800?"), *assistant_turn("red")), source="lone.json[3]")


def test_an_error_inside_the_processor_names_the_record() -> None:
    collator = MLLMCollator(tiny_qwen()[1])
    good = training_records(2)
    for collate in (collator.train, collator.generate):
        with pytest.raises(ValueError, match=r"thin.json\[0\]: ValueError: .*aspect ratio"):
            collate([good[0], thin(), good[1]])
        with pytest.raises(ValueError, match=r"lone.json\[3\]: "):
            collate([good[0], surrogate()])
        with pytest.raises(ValueError, match=r"lone.json\[3\]: "):
            collate([surrogate()])


def test_an_error_that_no_record_makes_alone_names_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    collator = MLLMCollator(tiny_llava()[1])

    def train(records: list[Record]) -> dict[str, torch.Tensor]:
        if len(records) > 1:
            raise KeyError("sizes")
        return {}

    monkeypatch.setattr(collator, "_train", train)
    with pytest.raises(ValueError, match=r"record 'r0', record 'r1': KeyError: 'sizes'"):
        collator.train(training_records(2))
    with pytest.raises(ValueError, match="record 'r0', record 'r1'"):
        SkippingCollate(collator.train, training_records(2))(training_records(2))


def test_an_error_inside_the_model_names_the_batch() -> None:
    model, processor = tiny_llava()
    module, collator = MLLMModule.from_objects(model, processor), MLLMCollator(processor)
    long = Record("long", (*user_turn("What? " * 300), *assistant_turn("red")))
    module.model.model.language_model.register_forward_pre_hook(lambda *inputs: 1 // 0)
    with pytest.raises(RuntimeError, match="failed on the batch of record 'e0', record 'e1': ZeroDivisionError"):
        module.generate(collator.generate(evaluation_records(2)))
    chosen = Record("c", user_turn("What?"), choices=("red", "blue"), source="c.json[1]")
    with pytest.raises(RuntimeError, match=r"failed on the batch of c.json\[1\]: ZeroDivisionError"):
        module.choose([chosen], collator)
    assert problem_of(collator.train, long) is None
    with pytest.raises(torch.OutOfMemoryError), naming_failure(lambda: ["r"]):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def task(records: list[Record], **settings: object) -> Task:
    return Task("t", records, evaluation_records(2, seed=9), epochs=1, **settings)  # type: ignore[arg-type]


def test_a_failing_training_step_names_the_records(tmp_path: Path) -> None:
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor)
    stream = CVITDataModule([task(training_records(4))], train_batch_size=1)
    seen: list[int] = []
    forward = model.forward

    def fails(**inputs: torch.Tensor) -> object:
        seen.append(1)
        if len(seen) == 3:
            raise IndexError("index out of range in self")
        return forward(**inputs)

    model.forward = fails  # type: ignore[method-assign]
    trainer = quiet_trainer(tmp_path, [], reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match=r"failed on the batch of record 'r\d': IndexError") as raised:
        trainer.fit(module, stream)
    order = list(stream.train_dataloader().sampler)
    assert f"record 'r{order[2][0]}'" in str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_records_can_be_skipped_and_are_counted(tmp_path: Path, num_workers: int) -> None:
    good = training_records(5)
    records = [good[0], thin("a"), *good[1:3], surrogate(), *good[3:], thin("b")]
    settings = {"processor": tiny_qwen()[1], "train_batch_size": 2, "num_workers": num_workers}
    stop = CVITDataModule([task(records)], **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"aspect ratio|lone.json"):
        list(stop.train_dataloader())
    skip = CVITDataModule([task(records, calibration=records)], bad_records="skip", **settings)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"training data of task 't': \d records were skipped") as told:
        batches = list(skip.train_dataloader())
    read, collated = (str(warning.message) for warning in told)
    assert ": 1 records" in read and "lone.json[3]" in read
    assert ": 2 records" in collated and "a.json[0]: ValueError" in collated and "b.json[0]" in collated
    assert len(batches) == 4 and all(batch["input_ids"].shape[0] for batch in batches)
    with pytest.warns(UserWarning, match=r"calibration data of task 't': \d records were skipped"):
        (batch,) = skip.calibration_dataloader(0, 5)
    assert batch["input_ids"].shape[0] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(CVITDataModule([task(good)], bad_records="skip", **settings).train_dataloader())  # type: ignore[arg-type]


def test_a_batch_of_bad_records_takes_another_record_in_their_place() -> None:
    collator, good = MLLMCollator(tiny_qwen()[1]), training_records(2)
    collate = SkippingCollate(collator.train, [thin("a"), *good, thin("b")])
    batch, bad = collate([thin("a"), thin("b")])
    assert list(bad) == ["a.json[0]", "b.json[0]"]
    singles = [collator.train([record])["input_ids"] for record in good]
    assert any(torch.equal(batch["input_ids"], single) for single in singles)
    with pytest.raises(ValueError, match="none of 1 records can be used"):
        SkippingCollate(collator.train, [thin()])([thin()])


def test_broken_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    write_llava_json(path, training_records(4), tmp_path)
    rows = json.loads(path.read_text())
    rows[0]["conversations"] = []
    (tmp_path / rows[2]["image"]).unlink()
    path.write_text(json.dumps(rows))
    stream = CVITDataModule(
        [Task("t", str(path), evaluation_records(2, seed=9), epochs=1)], processor=tiny_llava()[1], bad_records="skip"
    )
    with pytest.warns(UserWarning, match=r"training data of task 't': 2 records were skipped(.|\n)*train.json\[0\]"):
        (batch,) = stream.train_dataloader()
    assert batch["input_ids"].shape[0] == 2


def test_settings_and_data_check(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad_records is 'drop'; expected 'stop' or 'skip'"):
        CVITDataModule([task(training_records(2))], bad_records="drop")
    path = tmp_path / "train.json"
    write_llava_json(path, training_records(3), tmp_path)
    rows = json.loads(path.read_text())
    picture(1, 2, 700).save(tmp_path / rows[1]["image"])
    path.write_text(json.dumps(rows))
    processor = tiny_qwen()[1]
    for bad_records, problems in (("stop", 1), ("skip", 0)):
        stream = CVITDataModule(
            [Task("t", str(path), evaluation_records(2), epochs=1)], processor=processor, bad_records=bad_records
        )
        parts = check_stream(stream, stream.collator)
        assert sum(len(found) for part in parts for found in part.problems.values()) == problems
        assert "train.json[1]: ValueError" in summary(parts)
        assert ("which will be skipped" in summary(parts)) == (bad_records == "skip")
