"""The stream: its tasks, sets and loaders, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from support.chat_files import IMAGE, contents, text
from support.tiny_mllms import evaluation_records, tiny_llava, training_records, write_llava_json

from hpa_lightning.data import CVITDataModule, EvaluationSet, HarmfulInjection, Record, Task
from hpa_lightning.data.record import user_turn


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_llava()[1]


def three_tasks(**settings: Any) -> list[Task]:
    sizes = {"a": (10, {"epochs": 1}), "b": (7, {"epochs": 2}), "c": (9, {"steps": 5})}
    return [
        Task(name, training_records(size, seed=i, name=name), evaluation_records(3, seed=50 + i, name=f"t{name}"), **e)
        for i, (name, (size, e)) in enumerate(sizes.items(), start=1)
    ]


def stream(processor: Any = None, **settings: Any) -> CVITDataModule:
    return CVITDataModule(three_tasks(), processor=processor, train_batch_size=2, eval_batch_size=2, **settings)


def test_it_can_be_printed(processor: Any) -> None:
    assert str(stream(processor)) == str(stream()) == "CVITDataModule of 3 tasks: a, b, c"


def test_task_at_epoch() -> None:
    data = stream()
    spans = [data.task_at_epoch(epoch) for epoch in range(data.total_epochs)]
    assert [(s.index, s.task.name, s.first_epoch, s.last_epoch) for s in spans] == [
        (0, "a", 0, 0),
        (1, "b", 1, 2),
        (1, "b", 1, 2),
        (2, "c", 3, 3),
    ]
    for epoch in (-1, 4):
        with pytest.raises(ValueError, match=rf"epoch {epoch} is outside the stream of 3 tasks, which has 4 epochs"):
            data.task_at_epoch(epoch)


def test_task_order_by_names() -> None:
    assert [task.name for task in stream(task_order=["c", "a"]).tasks] == ["c", "a"]
    for order in (["a", "x"], ["a", "a"], []):
        with pytest.raises(ValueError, match=r"task_order is .*; expected some or all of \['a', 'b', 'c'\]"):
            stream(task_order=order)


def test_evaluation_sets_and_loaders(processor: Any) -> None:
    sets = [
        EvaluationSet("benign", "over_refusal", evaluation_records(3, 71)),
        EvaluationSet("attack", "safety", [Record("h", user_turn("Harm!"))], max_new_tokens=9),
    ]
    data = stream(processor, safety_sets=sets)
    assert [(s.name, s.kind, s.metric) for s in data.evaluation_sets()] == [
        ("a", "task", "exact_match"),
        ("b", "task", "exact_match"),
        ("c", "task", "exact_match"),
        ("attack", "safety", "attack_success_rate"),
        ("benign", "over_refusal", "over_refusal_rate"),
    ]
    batches = list(data.evaluation_dataloader(data.evaluation_sets()[0]))
    assert [batch["ids"] for batch in batches] == [["ta0", "ta1"], ["ta2"]]
    assert len(data.test_dataloader()) == 5 and len(data.val_dataloader()) == 3 and len(data.predict_dataloader()) == 5
    assert next(iter(data.test_dataloader()[3]))["references"] == [()]


def test_calibration_is_drawn_from_the_task_or_given(processor: Any) -> None:
    data = stream(processor, harmful_injection=HarmfulInjection(training_records(4, 90, "h"), ratio=0.1))

    def drawn(module: CVITDataModule, size: int) -> list[list[int]]:
        return [row.tolist() for batch in module.calibration_dataloader(1, size) for row in batch["labels"]]

    assert len(drawn(data, 4)) == 4 and len(drawn(data, 1000)) == 8  # 7 and one injected
    assert drawn(data, 5) == drawn(stream(processor, harmful_injection=data.harmful_injection), 5)
    tasks = three_tasks()
    tasks[1].calibration = training_records(1, seed=33)
    given = CVITDataModule(tasks, processor=processor)
    (batch,) = given.calibration_dataloader(1, 8)
    expected = given.collator.train(training_records(1, seed=33))
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("ratio", "counts"), [(0.0, [0, 0, 0]), (0.001, [1, 1, 1]), (0.25, [3, 2, 2])])
def test_harmful_injection(processor: Any, ratio: float, counts: list[int]) -> None:
    harmful = training_records(6, 90, "h")
    data = stream(processor, harmful_injection=HarmfulInjection(harmful, ratio=ratio))
    data.setup("fit")
    for task, count in zip(data.tasks, counts, strict=True):
        records = data._source.training(task)
        assert [r.id for r in records[len(records) - count :]] == [f"h{i}" for i in data.injected.get(task.name, [])]
        assert len(records) == len(task.train) + count
    again = stream(processor, harmful_injection=data.harmful_injection, task_order=["c", "a", "b"])
    again.setup("fit")
    assert again.injected == data.injected  # drawn by seed and name, whatever the order
    assert data.state_dict()["injected"] == data.injected
    with pytest.raises(ValueError, match=r"a ratio of 1.0 of 10 records of 'a' is 10, but only 6"):
        stream(processor, harmful_injection=HarmfulInjection(harmful, ratio=1.0)).setup("fit")


def test_test_records_in_the_training_data_are_refused() -> None:
    tasks = three_tasks()
    tasks[1].train = [*tasks[1].train, *(record for record in training_records(2, seed=52, name="tb"))]
    data = CVITDataModule(tasks)
    with pytest.raises(
        ValueError, match=r"2 of 9 records of the training data of task 'b' are also in the test data of"
    ):
        data.setup("fit")
    CVITDataModule(tasks, allow_overlap=True).setup("fit")
    tasks = three_tasks()
    tasks[0].calibration = training_records(3, seed=51)
    with pytest.raises(ValueError, match=r"3 of 3 records of the calibration data of task 'a' are also in"):
        CVITDataModule(tasks).setup("fit")


def test_safety_test_records_are_kept_out_of_calibration_and_injection() -> None:
    sets = [EvaluationSet("attack", "safety", evaluation_records(3, 90))]
    data = stream(safety_sets=sets, harmful_calibration=training_records(5, 90))
    with pytest.raises(ValueError, match=r"3 of 5 records of harmful_calibration are also in the safety set 'attack'"):
        data.setup("fit")
    data = stream(safety_sets=sets, harmful_injection=HarmfulInjection(training_records(3, 90)))
    with pytest.raises(ValueError, match=r"of harmful_injection are also in the safety set 'attack'"):
        data.setup("fit")
    # Nor may a task train on it.
    seen = Task("a", [*training_records(4, 1, "r"), *training_records(2, 90)], evaluation_records(2, 3))
    own = {"safety_sets": sets, "processor": tiny_llava()[1]}
    with pytest.raises(ValueError, match=r"2 of 6 records of the training data of task 'a' are also in the safety set"):
        CVITDataModule([seen], **own).setup("fit")
    CVITDataModule([seen], **own, allow_overlap=True).setup("fit")
    clean = stream(safety_sets=sets, harmful_calibration=training_records(5, 91))
    assert all(not r.ends_with_answer and not r.answers for r in clean.harmful_calibration_records())
    with pytest.raises(ValueError, match="safety calibration needs harmful inputs"):
        stream().harmful_calibration_records()


def test_metrics_belong_to_the_kind_of_their_set() -> None:
    for kind, metric in (("safety", "choice_accuracy"), ("safety", "exact_match"), ("over_refusal", "exact_match")):
        with pytest.raises(ValueError, match=f"'s' of kind '{kind}' has the metric '{metric}'; expected '"):
            EvaluationSet("s", kind, [], metric=metric)
    assert EvaluationSet("s", "safety", [], metric="unsafe_choice_rate").metric == "unsafe_choice_rate"
    with pytest.raises(ValueError, match="Unknown metric 'exact_mach'"):
        Task("a", [], [], metric="exact_mach")
    with pytest.raises(ValueError, match="Unknown refusal rules 'vlgaurd'"):
        EvaluationSet("s", "safety", [], judge="vlgaurd")
    unchosen = EvaluationSet("s", "safety", evaluation_records(2, 90), metric="unsafe_choice_rate")
    with pytest.raises(ValueError, match="UnsafeChoiceRate cannot score it: 0 choices"):
        stream(safety_sets=[unchosen]).setup("fit")


def test_files_and_missing_images(tmp_path: Path, processor: Any) -> None:
    write_llava_json(tmp_path / "train.json", training_records(3), tmp_path / "images")
    write_llava_json(tmp_path / "test.json", training_records(2, seed=9, name="t"), tmp_path / "images")
    images = str(tmp_path / "images")
    task = Task("a", str(tmp_path / "train.json"), str(tmp_path / "test.json"), image_folder=images)
    data = CVITDataModule([task], processor=processor)
    data.setup()
    assert len(list(data.train_dataloader())) == 1
    (tmp_path / "images" / "r1.png").unlink()
    with pytest.raises(ValueError, match=r"1 image files are missing, the first in train\.json\[1\]: '.*r1\.png'"):
        CVITDataModule([task], processor=processor).setup("fit")
    late = CVITDataModule([task], processor=processor, check_images=False)
    late.setup("fit")
    with pytest.raises(ValueError, match=r"train\.json\[1\]: image file '.*r1\.png' does not exist"):
        list(late.train_dataloader())


def test_constructor_checks() -> None:
    with pytest.raises(ValueError, match="epochs=1 and steps=2; expected one"):
        Task("a", [], [], epochs=1, steps=2)
    with pytest.raises(ValueError, match="steps=0; expected at least 1"):
        Task("a", [], [], steps=0)
    with pytest.raises(ValueError, match="task name 'a/b'"):
        Task("a/b", [], [])
    with pytest.raises(ValueError, match="kind 'danger'; expected one of"):
        EvaluationSet("x", "danger", [])
    with pytest.raises(ValueError, match="ratio is 10"):
        HarmfulInjection([], ratio=10)
    with pytest.raises(ValueError, match="expected each name once"):
        stream(safety_sets=[EvaluationSet("a", "safety", [])])
    with pytest.raises(ValueError, match=r"safety_sets \['x'\] are of kind 'task'"):
        stream(safety_sets=[EvaluationSet("x", "task", [])])
    with pytest.raises(ValueError, match="train_batch_size is 0"):
        CVITDataModule(three_tasks(), train_batch_size=0)
    with pytest.raises(ValueError, match="the datamodule has no processor"):
        stream().collator  # noqa: B018
    with pytest.raises(ValueError, match=r"the evaluation set 'a'.* holds no records|holds no records"):
        CVITDataModule([Task("a", training_records(1), [])]).setup("fit")
    with pytest.raises(ValueError, match="no reference answer"):
        CVITDataModule([Task("a", training_records(1), [Record("q", user_turn("?"))])]).setup("test")


def test_another_stream_cannot_be_resumed() -> None:
    state = stream().state_dict()
    stream().load_state_dict(state)
    with pytest.raises(ValueError, match=r"seed: 0 in the checkpoint, 1 now"):
        stream(seed=1).load_state_dict(state)


def test_image_place_is_set_from_yaml_for_all_and_for_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Is this <image> red?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "t.json").write_text(json.dumps([{"conversations": turns, "image": "a.png"}]))
    task = {"train": str(tmp_path / "t.json"), "test": str(tmp_path / "t.json")}
    settings = {
        "tasks": [{"name": "a", **task}, {"name": "b", **task, "image_place": "front"}],
        "safety_sets": [{"name": "s", "kind": "safety", "data": task["test"], "image_place": "front"}],
        "harmful_calibration": task["test"],
        "image_place": "as_written",
        "check_images": False,
        "allow_overlap": True,
    }
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(CVITDataModule, "data", subclass_mode=True)
    config = {"data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": settings}}
    data = parser.instantiate_classes(parser.parse_object(yaml.safe_load(yaml.safe_dump(config)))).data
    data.setup()
    as_written, front = [text("Is this "), IMAGE, text(" red?")], [IMAGE, text("Is this  red?")]
    found = [data._source.training(item)[0] for item in data.tasks]
    found += [data._source.evaluation(item)[0] for item in data.evaluation_sets()]
    found += data.harmful_calibration_records()
    expected = [as_written, front, as_written, front, front, as_written]
    assert [contents(record)[0][1] for record in found] == expected
    with pytest.raises(ValueError, match=r"image_place is 'left'"):
        Task("a", "x", "y", image_place="left")  # type: ignore[arg-type]
