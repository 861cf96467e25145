"""Every reader raises its documented error, short and with the file's name, whatever stands in the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzz_readers as fuzz

from hpa_lightning.data import RecordSet
from hpa_lightning.data.readers.reader import FORMATS, parse_rows
from hpa_lightning.data.readers.row_fields import DataWarning, Reading
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.parsing import parse_json
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.study.store import Store
from hpa_lightning.study.study_file import read_study
from hpa_lightning.values import shown

INPUTS = 75
"""Of every reader; `python tests/support/fuzz_readers.py 30000` tries as many as are asked for."""


@pytest.mark.parametrize("name", fuzz.CASES)
def test_mutated_files(name: str) -> None:
    found = fuzz.run(name, INPUTS)
    assert not found, f"{len(found)} faults, the first: {found[0][1]} by {str(found[0][0])[:500]}"


def test_no_reader_of_records_is_left_out() -> None:
    """The hub's rows come through another library; they are parsed as those of every other file."""
    tried = Path(fuzz.__file__).read_text()
    sets = {one.__name__ for one in every_subclass(RecordSet) if one.__module__.startswith("hpa_lightning.")}
    assert len(sets) >= 19 and {name for name in sets if f"{name}(" not in tried} == {"HubDataset"}


def every_subclass(kind: type) -> Iterator[type]:
    for found in kind.__subclasses__():
        yield found
        yield from every_subclass(found)


_TEXTS = st.sampled_from(["", "a", "<image>", "yes", "x" * 3000, "\ud83d", "data:,", "http://x/y.png"])

_TEXTS |= st.text(max_size=8)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)

_ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"]) | _VALUES


def _maybe(strategy: Any) -> Any:
    """Mostly what belongs there."""
    return st.one_of(strategy, strategy, strategy, _VALUES)


_PARTS = st.fixed_dictionaries(
    {"type": _maybe(st.sampled_from(["text", "image", "image_url"]))},
    optional={"text": _maybe(_TEXTS), "image": _VALUES, "url": _VALUES, "image_url": _VALUES, "path": _VALUES},
)

_TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": _ROLES,
        "content": _maybe(_TEXTS | st.lists(_PARTS, max_size=3)),
        "from": _ROLES,
        "value": _maybe(_TEXTS),
        "human": _maybe(_TEXTS),
        "assistant": _maybe(_TEXTS),
        "loss": _VALUES,
        "weight": _VALUES,
    },
)

_KEYS = sorted(
    {key for keys, _ in FORMATS.values() for key in keys} | {"id", "system", "image", "images", "answer", "x"}
)

_ROWS = st.dictionaries(
    st.sampled_from(_KEYS),
    st.lists(_TURNS, min_size=1, max_size=4) | _VALUES,
    max_size=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_ROWS | _VALUES, min_size=1, max_size=3))
def test_any_rows(rows: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        for found in parse_rows([(f"t.json[{i}]", row) for i, row in enumerate(rows)], "t.json", Reading(Path("f"))):
            if not isinstance(found, Record):
                assert type(found) is ValueError and str(found).startswith("t.json[")
                fuzz.check_message(str(found))


def test_known_hurts(tmp_path: Path) -> None:
    deep = "[" * 100_000
    for text, message in ((deep, "nested too deeply"), ("1" * 5000, "broken JSON"), ("{", "at line 1")):
        with pytest.raises(ValueError, match=rf"^a\.json: .*{message}"):
            parse_json(text, "a.json")
    (tmp_path / "t.json").write_text(json.dumps([{"messages": "x" * 50_000_000}]))
    (error,) = parse_rows([("t.json[0]", {"messages": ["x" * 1000] * 1000})], "t.json", Reading())
    fuzz.check_message(str(error))
    assert len(shown({"a": ["x" * 10**7] * 100})) < 400 and len(shown(10**10000)) < 400
    (tmp_path / "twice.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(ValueError, match=r"^twice\.csv has the column 'prompt' twice"):
        list(read_table(tmp_path / "twice.csv"))


def test_torn_notes_of_a_store_are_named(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(fuzz.STUDY))
    cell = read_study(tmp_path / "study.yaml").cells()[0]
    store = Store(tmp_path / "runs")
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    (folder / "started.json").write_text("")
    with pytest.warns(UserWarning, match=r"started\.json"):
        store.start(cell)
    (folder / "cell.json").write_text('{"key": ')
    with pytest.raises(ValueError, match=r"cell\.json: broken JSON"):
        Store(tmp_path / "runs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"/etc": {}}}, r"conditions: the name '/etc'; expected a text without slashes"),
        ({"conditions": {"..": {}}}, r"the name '\.\.'"),
        ({"base": {"when": "2020-01-01", 1: 2}}, r"a value that JSON cannot represent"),
        ({"base": {"trainer": "x"}}, r"trainer is 'x'; expected a mapping"),
        ({"conditions": {"clean": [1]}}, r"condition 'clean' is \[1\]; expected a mapping"),
    ],
)
def test_studies_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import yaml

    content = yaml.safe_dump({**fuzz.STUDY, **change}).replace("'2020-01-01'", "2020-01-01")
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"study\.yaml.*" + message):
        read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("event", "change", "message"),
    [
        (0, {"tasks": ["a", "a"]}, r"tasks of the same name, \['a'\]"),
        (1, {"step": 7}, r"a score of step 7 in a run of 1 tasks"),
        (1, {"step": -2}, r"a score of step -2"),
    ],
)
def test_results_that_cannot_be(event: int, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    events = [{**one, **change} if index == event else one for index, one in enumerate(fuzz.EVENTS)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    with pytest.raises(ValueError, match=r"results\.jsonl: .*" + message):
        RunResults.from_file(tmp_path)
