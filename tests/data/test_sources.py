"""What is drawn for a task: samples of earlier tasks, of a safety set, injected ones; test records are kept out."""

from __future__ import annotations

from collections import Counter

import pytest
from support.replay_streams import SIZES, stream, tasks, trained
from support.tiny_mllms import evaluation_records, tiny_llava, training_records

from hpa_lightning.data import CVITDataModule, EvaluationSet, HarmfulInjection, Replay, SafetyReplay


def test_later_tasks_replay_a_fixed_number_of_each_earlier_one() -> None:
    data = stream(replay=Replay(samples_per_task=4))
    assert set(data.replayed) == {"a", "b"}, "nothing replays the last task"
    assert all(len(set(indices)) == 4 for indices in data.replayed.values())
    remembered = {name: [f"{name}{index}" for index in indices] for name, indices in data.replayed.items()}
    assert trained(data, "a") == [f"a{i}" for i in range(10)]
    assert trained(data, "b") == [f"b{i}" for i in range(7)] + remembered["a"]
    mixed = [record for pair in zip(remembered["a"], remembered["b"], strict=True) for record in pair]
    assert trained(data, "c") == [f"c{i}" for i in range(20)] + mixed
    assert stream(replay=Replay(100)).replayed["b"] != sorted(range(7)), "an order was drawn"
    assert sorted(stream(replay=Replay(100)).replayed["b"]) == list(range(7)), "all of a task that has fewer"


def test_the_draw_depends_on_seed_and_name_alone() -> None:
    drawn = stream(replay=Replay(4)).replayed
    reordered = stream(replay=Replay(4), task_order=["b", "c", "a"]).replayed
    assert reordered["b"] == drawn["b"] and set(reordered) == {"b", "c"}
    assert stream(replay=Replay(4, share=0.5)).replayed == drawn
    assert stream(replay=Replay(4), seed=1).replayed != drawn


def test_a_share_repeats_and_cuts_what_is_remembered() -> None:
    data = stream(replay=Replay(3, share=0.5))
    replayed = trained(data, "c")[20:]
    times = Counter(replayed)
    assert len(replayed) == 20 and len(times) == 6 and set(times.values()) == {3, 4}
    cut = trained(stream(replay=Replay(4, share=0.1)), "c")[20:]
    assert [name[0] for name in cut] == ["a", "b"], "2 of 22, the tasks in turn"


def test_injected_samples_may_be_replayed_and_calibration_stays_the_tasks_own() -> None:
    injection = HarmfulInjection(training_records(4, 90, "h"), ratio=0.2)
    whole = stream(harmful_injection=injection, replay=Replay(100))
    assert sorted(trained(whole, "b")[7 + 1 :]) == sorted(trained(whole, "a")), "the two injected ones included"
    data = stream(
        processor=tiny_llava()[1],
        harmful_injection=injection,
        replay=Replay(100, share=0.4),
        safety_replay=SafetyReplay(training_records(6, 91, "s"), samples=2),
    )
    own = data._source.calibration(data.tasks[2])
    assert Counter(r.id[0] for r in own) == {"c": 20, "h": 4}
    assert sum(len(batch["labels"]) for batch in data.calibration_dataloader(2, 1000)) == 24
    assert len(trained(data, "c")) == round((24 + 2) / (1 - 0.4)) == 43


def test_every_task_gets_the_same_safety_records() -> None:
    data = stream(safety_replay=SafetyReplay(training_records(9, 91, "s"), samples=5))
    assert len(set(data.safety_replayed)) == 5
    for name, size in SIZES.items():
        assert trained(data, name)[size:] == [f"s{index}" for index in data.safety_replayed]
    assert len(stream(safety_replay=SafetyReplay(training_records(9, 91, "s"))).safety_replayed) == 9
    shared = stream(
        replay=Replay(2, share=0.5), safety_replay=SafetyReplay(training_records(9, 91, "s"), 3, share=0.25)
    )
    assert Counter(name[0] for name in trained(shared, "c")) == {"c": 20, "a": 20, "b": 20, "s": 20}


def test_test_records_are_kept_out() -> None:
    sets = [EvaluationSet("attack", "safety", evaluation_records(3, 90))]
    with pytest.raises(ValueError, match=r"3 of 5 records of safety_replay are also in the safety set 'attack'"):
        stream(safety_sets=sets, safety_replay=SafetyReplay(training_records(5, 90, "s")))
    stream(safety_sets=sets, safety_replay=SafetyReplay(training_records(5, 91, "s")))
    with pytest.raises(ValueError, match=r"record 's\d': a training record must end with an assistant turn"):
        stream(safety_replay=SafetyReplay(evaluation_records(3, 91, "s")))
    crossed = tasks()
    crossed[2].test = [*crossed[2].test, *evaluation_records(1, seed=1)]  # a record that the first task trains on
    CVITDataModule(crossed).setup("fit")
    with pytest.raises(ValueError, match=r"the training data of task 'c' are also in the test data of task 'c'"):
        CVITDataModule(crossed, replay=Replay(10)).setup("fit")
