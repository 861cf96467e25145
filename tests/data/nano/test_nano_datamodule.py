"""NanoDataModule: a stream with disjoint splits, seeded, in the form that callbacks rely on."""

import numpy as np
import pytest
import torch

from hpa_lightning.data.nano import NanoDataModule
from hpa_lightning.data.nano.lexicon import TASK_NAMES
from hpa_lightning.data.overlap import record_key


@pytest.fixture(scope="module")
def module() -> NanoDataModule:
    return NanoDataModule(train_size=60, calibration_size=12, test_size=20, steps=3, harmful_ratio=0.1)


def test_the_stream_has_six_tasks_and_four_more_sets(module) -> None:
    assert [task.name for task in module.tasks] == list(TASK_NAMES)
    assert module.total_epochs == 6
    kinds = [item.kind for item in module.evaluation_sets()]
    assert kinds == ["task"] * 6 + ["safety"] * 3 + ["over_refusal"]
    module.setup("fit")  # checks records, and that no test record is trained or calibrated on


def test_training_calibration_and_test_data_share_no_record(module) -> None:
    def keys(*data) -> set[str]:
        return {record_key(record) for records in data for record in records}

    train = keys(*(task.train for task in module.tasks), module.harmful_injection.data)
    calibration = keys(*(task.calibration for task in module.tasks), module.harmful_calibration_records())
    test = keys(*(item.data for item in module.evaluation_sets()))
    assert len(test) == 10 * 20
    assert not train & calibration
    assert not train & test
    assert not calibration & test
    assert len(keys(module.harmful_calibration_records())) == 180


def test_the_first_harmful_calibration_inputs_are_of_all_three_kinds(module) -> None:
    names = [record.id.rsplit("-", 2)[0] for record in module.harmful_calibration_records()]
    assert names[:6] == ["harmful-text", "harmful-image", "harmful-typeset"] * 2
    assert {names.count(name) for name in set(names)} == {60}


def test_seeds_change_the_training_data_and_not_the_tests() -> None:
    def keys(seed: int) -> tuple[list[str], list[str]]:
        stream = NanoDataModule(seed=seed, train_size=20, calibration_size=4, test_size=6)
        return (
            [record_key(record) for task in stream.tasks for record in task.train],
            [record_key(record) for item in stream.evaluation_sets() for record in item.data],
        )

    assert keys(0) == keys(0)
    assert keys(0)[0] != keys(1)[0]
    assert keys(0)[1] == keys(1)[1]


def test_batches_pass_through_the_models_processor(module) -> None:
    batch = next(iter(module.calibration_dataloader(2, 8)))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    tokenizer = module.collator.processor.tokenizer
    given = [
        tokenizer.decode(ids[labels != -100]) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    known = {record.messages[-1]["content"][0]["text"] + "</s>" for record in module.tasks[2].calibration}
    assert {answer.replace(" </s>", "</s>") for answer in given} <= known
    assert any(answer.startswith("a photo of a") for answer in given)
    generated = next(iter(module.evaluation_dataloader(module.evaluation_sets()[0])))
    assert torch.all(generated["inputs"]["attention_mask"][:, -1] == 1)
    assert len(generated["references"]) == 20


def test_injected_records_comply(module) -> None:
    assert len(module.harmful_injection.data) >= 6
    for record in module.harmful_injection.data:
        assert record.messages[-1]["content"][0]["text"].startswith("to ")
    assert sum(len(injected) for injected in module.injected.values()) == 6 * 6


def test_task_order_and_bad_sizes() -> None:
    stream = NanoDataModule(train_size=4, calibration_size=2, test_size=2, task_order=["charts", "driving"])
    assert [task.name for task in stream.tasks] == ["charts", "driving"]
    assert np.asarray(stream.tasks[0].train[0].images[0]).shape == (32, 32, 3)
    with pytest.raises(ValueError, match="test_size"):
        NanoDataModule(test_size=0)
    with pytest.raises(ValueError, match="task_order"):
        NanoDataModule(train_size=4, calibration_size=2, test_size=2, task_order=["cooking"])
