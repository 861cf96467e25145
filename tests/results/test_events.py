"""The events of result files: what is written, what is read, and old files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import hpa_lightning.callbacks
from hpa_lightning.results.events import (
    KINDS,
    FusionEvent,
    GateEvent,
    RetentionEvent,
    RunEvent,
    ScoreEvent,
    TestedEvent,
    TimeEvent,
    event_of,
)
from hpa_lightning.results.result_file import ResultWriter, read_results
from hpa_lightning.results.run_results import RunResults

ROOT = Path(__file__).parents[2]
SCORE = {"event": "score", "step": 0, "after": "a", "set": "a", "kind": "task", "metric": "exact_match", "score": 0.5}


def stored() -> list[dict]:
    """Every line of the runs that were stored with an earlier version."""
    cells = map(json.loads, (ROOT / "docs" / "results" / "nano.jsonl").read_text().splitlines())
    return [line for cell in cells for line in cell["events"]]


def test_stored_runs_are_read_and_written_again_as_they_were() -> None:
    lines = stored()
    assert len(lines) > 10_000 and len({line["event"] for line in lines}) == 6
    for line in lines:
        event = event_of(line, "the file")
        assert event is not None and not event.extra
        written = event.record()
        assert [key for key in written if key in line] == list(line)
        assert {key: value for key, value in written.items() if value is not None or key in line} == line


def test_every_kind_is_frozen_and_documented() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert set(re.findall(r'"event": "(\w+)"', text)) == set(KINDS)
    for name, kind in KINDS.items():
        (line,) = re.findall(rf'^- `{{"event": "{name}".*', text, re.MULTILINE)
        for item in dataclasses.fields(kind):
            assert item.name in ("extra", "judged_again") or re.search(rf"\b{item.name}\b", line), (name, item.name)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_what_was_not_measured_is_null_and_what_does_not_apply_is_left_out(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "results.jsonl")
    writer.write(ScoreEvent(step=-1, set="a", kind="task", metric="m", score=float("nan"), n=3))
    writer.write(RetentionEvent(step=0, task="a", layer=1, module="m", columns=4, retained=1))
    writer.write(TestedEvent(method="m", tasks=("a",), sets=({"name": "a", "kind": "task"},), tested=None))
    score, retention, run = map(json.loads, writer.path.read_text().splitlines())
    keys = ["event", "step", "after", "set", "kind", "metric", "score", "n"]
    assert list(score) == keys and score["after"] is None and score["score"] is None
    assert retention["alpha"] is None and "units" not in retention
    assert run["tested"] is None and run["tasks"] == ["a"] and "judge" not in run
    results = RunResults(read_results(tmp_path), writer.path)
    assert isinstance(results.about, TestedEvent) and results.events(ScoreEvent)[0].score is None
    assert results.events(RunEvent) == [results.about] and results.events(FusionEvent) == []


def test_keys_and_kinds_of_others_are_kept(tmp_path: Path) -> None:
    event = event_of({**SCORE, "temperature": 0.7}, "the file")
    assert event is not None and event.extra == {"temperature": 0.7} and event.record()["temperature"] == 0.7
    assert event_of({"event": "mine", "step": "anything"}, "the file") is None
    writer = ResultWriter(tmp_path / "results.jsonl")
    writer.write({"event": "run", "method": "m", "tasks": ["a"], "sets": [], "threads": 2})
    writer.write({"event": "mine", "value": [1]})
    run = RunResults.from_file(tmp_path)
    assert run.events("mine") == [{"event": "mine", "value": [1]}] and run.about.extra == {"threads": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**SCORE, "step": "0"}, r"line 3: 'step' of a 'score' event is '0'"),
        ({**SCORE, "n": True}, r"'n' of a 'score' event is True"),
        ({**SCORE, "decoding": ["greedy"]}, r"'decoding' of a 'score' event"),
        ({key: value for key, value in SCORE.items() if key != "metric"}, r"the 'score' event lacks \['metric'\]"),
        ({"event": "time", "step": 0, "seconds": "1"}, r"'seconds' of a 'time' event"),
        ({"event": "retention", "columns": 4, "retained": 1.5}, r"'retained' of a 'retention' event is 1.5"),
        ({"event": "gate", "task": "a"}, r"lacks \['action', 'budget', 'attack_success_rate'"),
        ({"event": "run", "tasks": [1]}, r"the task 1 of a run; expected a name"),
        ({"event": "run", "tasks": "ab"}, r"'tasks' of a 'run' event is 'ab'"),
        ({"event": "run", "sets": [{"name": "a"}]}, r"the set .* of a run; expected \{'name', 'kind'\}"),
        ({"event": "end", "tasks": None, "finished_tasks": "all"}, r"'finished_tasks' of a 'end' event"),
    ],
)
def test_a_value_of_another_type_is_named(line: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        event_of(line, "results.jsonl, line 3")


def test_a_misspelt_field_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="second"):
        TimeEvent(step=0, phase="train", second=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="budget"):
        GateEvent(task="a", action="stop")  # type: ignore[call-arg]


def test_callbacks_write_events_not_strings() -> None:
    for file in Path(hpa_lightning.callbacks.__file__).parent.rglob("*.py"):
        assert not re.search(r'\.record\(\s*trainer,\s*"', file.read_text()), file
