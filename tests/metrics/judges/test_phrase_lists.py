"""Lists of phrases: how they match, and files that hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.metrics.judges.phrase_lists import Phrases, read_phrases


@pytest.mark.parametrize(
    ("match", "text", "found"),
    [
        ("anywhere", "The CLASS", "ass"),
        ("prefix", "  Assume", "ass"),
        ("prefix", "the ass", None),
        ("words", "the class", None),
        ("words", "an ass!", "ass"),
        ("words", "a pipe \n bomb", "pipe bomb"),
        ("words", "Nope", "nope"),
    ],
)
def test_ways_to_match(match: str, text: str, found: str | None) -> None:
    assert Phrases(match, ("ass", "pipe", "pipe bomb"), exact=("nope",)).found(text) == found


def test_phrases_of_a_file_are_compared_in_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps({"match": "words", "phrases": ["Pipe Bomb"], "exact": ["NO"], "source": "somewhere"}))
    phrases = read_phrases(path)
    assert phrases == Phrases("words", ("pipe bomb",), ("no",)) and phrases.found("a PIPE bomb") == "pipe bomb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "name no way to match"),
        ({"match": "regex", "phrases": ["a"]}, "name no way to match"),
        ({"match": "words", "phrases": ["a"], "words": ["b"]}, r"unknown keys \['words'\]"),
        ({"match": "words", "phrases": "a"}, "'phrases' of the lists in .* must be non-empty strings"),
        ({"match": "words", "exact": [" "]}, "'exact' of the lists"),
        ({"match": "words"}, "hold no phrase"),
    ],
)
def test_files_that_hold_no_list_are_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_phrases(path, "lists")
