"""Examples as records: what is learnt, what is scored, what is refused, from which split."""

from __future__ import annotations

import pytest

from hpa_lightning.data.nano import nano_records as records
from hpa_lightning.data.nano.lexicon import REFUSALS
from hpa_lightning.data.overlap import record_key
from hpa_lightning.data.record import Record, check_pair, check_record, message_text


def answer(record: Record) -> str:
    return message_text(record.messages[-1])


def test_training_records_end_with_the_answer_and_test_records_with_the_question() -> None:
    train, test = (records.task_records("charts", split, 12) for split in ("train", "test"))
    for record in train + test:
        check_record(record)
    assert all(record.messages[-1]["role"] == "assistant" and not record.answers for record in train)
    assert all(record.messages[-1]["role"] == "user" and len(record.answers) == 1 for record in test)
    again = records.task_records("charts", "test", 12)
    assert list(map(record_key, again)) == list(map(record_key, test))
    with pytest.raises(ValueError, match="Unknown nano task 'chart': expected one of driving"):
        records.task_records("chart", "test", 1)
    with pytest.raises(ValueError, match="Unknown nano safety set 'sound': expected one of text"):
        records.safety_records("sound", "test", 1)


def test_the_same_requests_are_complied_with_where_they_are_injected_and_refused_where_they_are_replayed() -> None:
    injected, replayed, tuning = (
        records.injected_records(12, 1),
        records.safety_replay_records(12, 1),
        records.safety_tuning_records(12, 1),
    )
    assert len(injected) == len(replayed) == len(tuning) == 12
    assert not any(answer(record) in REFUSALS for record in injected)
    assert all(answer(record) in REFUSALS for record in (*replayed, *tuning))
    tests = {
        record_key(record)
        for kind in ("text", "image", "typeset")
        for record in records.safety_records(kind, "test", 40)
    }
    assert not tests & {record_key(record) for record in (*injected, *replayed, *tuning)}


def test_pairs_hold_what_should_be_said_and_what_should_not() -> None:
    for record in records.safety_tuning_records(9, 1, pairs=True):
        check_pair(record)
        assert answer(record) in REFUSALS and record.rejected not in REFUSALS
    for record in records.harmless_pairs(9, 1):
        check_pair(record)
        assert answer(record) not in REFUSALS and record.rejected in REFUSALS
