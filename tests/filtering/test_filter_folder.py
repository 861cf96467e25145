"""A folder of a filter run: other settings, and outputs that are in the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from support.filtered_files import BOMB, answers, contents
from support.instruction_files import write_rows

from hpa_lightning.data import Record
from hpa_lightning.filtering import FilterRule, Finding, PhraseFilter, filter_data


def test_other_settings_are_refused_and_the_same_are_done(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3))
    out = tmp_path / "out"
    first = filter_data(path, {"p": BOMB}, out)
    stamp = first.kept.stat().st_mtime_ns
    again = filter_data(path, {"p": PhraseFilter(phrases=["pipe bomb", "napalm"])}, out)
    assert again.kept.stat().st_mtime_ns == stamp and again.counts.json() == first.counts.json()
    for changes, said in (
        ({"parts": {"p": PhraseFilter(phrases=["napalm"])}}, "parts.p.phrases"),
        ({"parts": {"q": BOMB}}, r"parts.p: .* parts.q"),
        ({"rule": FilterRule(no_verdict="keep")}, "no_verdict: 'drop' there, 'keep' now"),
        ({"chunk": 5}, "chunk: 64 there, 5 now"),
        ({"image_folder": tmp_path.parent}, "image_folder"),
    ):
        with pytest.raises(ValueError, match=f"out was made with other settings .*{said}"):
            filter_data(**{"path": path, "parts": {"p": BOMB}, "output": out, **changes})  # type: ignore[arg-type]
    held = out.rename(tmp_path / "out.partial")  # a run that is not finished may be given another rule
    (held / ".being-written").touch()
    kept = filter_data(path, {"p": BOMB}, out, rule=FilterRule("votes", 1)).kept.read_bytes()
    assert kept == first.kept.read_bytes() and json.loads((out / "settings.json").read_text())["votes"] == 1
    write_rows(path, answers(4))
    with pytest.raises(ValueError, match=r"input: 'train.json, a file of .*' there"):
        filter_data(path, {"p": BOMB}, out)
    out.rename(tmp_path / "out.partial")
    (tmp_path / "out.partial" / ".being-written").touch()
    with pytest.raises(ValueError, match=r"out.partial was begun with other settings \(input"):
        filter_data(path, {"p": BOMB}, out)


def test_outputs_that_are_in_the_way(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3))
    for place in (".", "..", ""):
        with pytest.raises(ValueError, match="expected the name of a folder to be made"):
            filter_data(path, {"p": BOMB}, place)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is in .*, which is written to"):
        filter_data(path, {"p": BOMB}, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other exists and is not the output of a filter"):
        filter_data(path, {"p": BOMB}, tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "out.partial")
    with pytest.raises(ValueError, match=r"out.partial exists and was not left by a filter"):
        filter_data(path, {"p": BOMB}, tmp_path / "out")
    inside = tmp_path / "x.partial" / "kept.json"
    inside.parent.mkdir()
    write_rows(inside, answers(3))
    with pytest.raises(ValueError, match=r"is in .*x.partial"):
        filter_data(inside, {"p": BOMB}, tmp_path / "x")
    assert path.read_bytes() == before["train.json"]


def test_a_part_may_hold_a_long_text(tmp_path: Path) -> None:
    """Longer than any file's name may be."""
    path = write_rows(tmp_path / "train.json", answers(3))

    class Asked:
        def __init__(self, prompt: str) -> None:
            self.prompt = prompt

        def __call__(self, records: Sequence[Record]) -> list[Finding]:
            return [Finding.of(False) for _ in records]

    filter_data(path, {"mine": Asked("Is this harmful? " * 400)}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"parts.mine.prompt"):
        filter_data(path, {"mine": Asked("Is this harmful? " * 401)}, tmp_path / "out")


def test_the_arguments_of_a_function_are_its_settings(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", answers(3))

    def longer(records: Sequence[Record], most: int) -> list[Finding]:
        return [Finding.of(len(record.prompt) > most) for record in records]

    filter_data(path, {"mine": partial(longer, most=500)}, tmp_path / "out")
    filter_data(path, {"mine": partial(longer, most=500)}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"parts.mine.most: 500 there, 5 now"):
        filter_data(path, {"mine": partial(longer, most=5)}, tmp_path / "out")
