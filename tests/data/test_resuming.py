"""A fit goes on with the data and the settings that it was started with, or says what differs."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resumed_streams import data, new_answer, rewrite, write_stream

from hpa_lightning.callbacks import RetentionSettings
from hpa_lightning.data.digests import file_digest
from hpa_lightning.data.resuming import described, differences
from hpa_lightning.metrics.judges import GuardModelJudge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stream(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "name"),
    [
        ("first.json", lambda rows: rows[::-1], "data.tasks.first.train"),
        ("second.json", new_answer, "data.tasks.second.train"),
        ("first.json", lambda rows: rows[:3], "data.tasks.first.train"),
        ("second_test.json", new_answer, "data.sets.second.data"),
        ("harmful.json", lambda rows: rows[1:], "data.sets.harmful.data"),
        ("calibration.json", new_answer, "data.harmful_calibration"),
    ],
)
def test_a_changed_file_is_noticed(folder: Path, file: str, change: Any, name: str) -> None:
    state = data(folder).state_dict()
    data(folder).load_state_dict(state)
    rewrite(folder / file, change)
    with pytest.raises(
        ValueError, match=rf"another stream \(.*{name}: \d records, \w+, pictures \w+ in the checkpoint, \d records, "
    ):
        data(folder).load_state_dict(state)


def test_changed_settings_of_the_data_are_noticed_and_those_that_do_not_matter_are_not(folder: Path) -> None:
    state = data(folder).state_dict()
    for options, name in (
        ({"safety_sets": None}, r"data\.sets\.harmful: .* in the checkpoint, nothing now"),
        ({"harmful_calibration": None}, r"data\.harmful_calibration: .* in the checkpoint, nothing now"),
        ({"chat_template": "plain"}, r"data\.chat_template: "),
        ({"max_length": 90}, r"data\.max_length: None in the checkpoint, 90 now"),
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
    ):
        with pytest.raises(ValueError, match=name):
            data(folder, **options).load_state_dict(state)
    data(folder, num_workers=2, eval_batch_size=1, validate_during_fit=True).load_state_dict(state)
    rewrite(folder / "first.json", lambda rows: [{**row, "id": f"new {row['id']}"} for row in rows])
    data(folder).load_state_dict(state)
    moved = folder.with_name("moved")
    shutil.move(folder, moved)
    data(moved).load_state_dict(state)


def test_another_processor_is_noticed(folder: Path) -> None:
    state = data(folder).state_dict()
    other = data(folder)
    other.processor.image_processor.size = {"shortest_edge": 14}
    with pytest.raises(ValueError, match=r"data\.processor\.image\.size\.shortest_edge: 28 in the checkpoint, 14 now"):
        other.load_state_dict(state)
    other = data(folder)
    other.processor.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"data\.processor\.tokens: \d+ tokens, \w+ in the checkpoint, \d+ tokens"):
        other.load_state_dict(state)
    state["data"]["processor"]["image"]["of_another_version"] = 3
    data(folder).load_state_dict(state)


def test_settings_in_words(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("a")
    before = described({"judge": str(rules), "batch": [torch.ones(2)], "retention": RetentionSettings()})
    assert before["judge"] == file_digest(rules) and before["retention"]["p_min"] == 5.0
    assert (
        differences(
            before, described({"judge": str(rules), "batch": [torch.ones(2)], "retention": RetentionSettings()})
        )
        == {}
    )
    rules.write_text("b")
    after = described({"judge": str(rules), "batch": [torch.zeros(2)], "retention": RetentionSettings(p_min=4.0)})
    assert sorted(differences(before, after)) == ["batch", "judge", "retention.p_min"]
    rates = [described({"rate": partial(torch.optim.SGD, lr=lr)}) for lr in (0.1, 0.2)]
    assert differences(*rates) == {"rate.lr": (0.1, 0.2)}
    guards = [GuardModelJudge("guard", batch_size=size, safe=word) for size, word in ((1, "safe"), (2, "ok"))]
    assert differences(*map(described, guards)) == {"safe": ("safe", "ok")}
