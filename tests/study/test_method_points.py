"""Windows of blocks that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.study.method_points import windows_of
from hpa_lightning.study.study_file import expand_study
from hpa_lightning.study.windows import windows_study


def study(methods: dict[str, Any], wanted: list[str]) -> Any:
    group = {"title": "G", "methods": wanted, "seeds": [1, 2]}
    base = {"trainer": {}, "seed_everything": "${seed}"}
    return expand_study({"base": base, "methods": methods, "groups": {"g": group}}, "s.yaml")


def test_what_is_no_window() -> None:
    assert windows_of(3, 1, 2) == [(1, 1), (3, 3)]
    for windows, message in (
        ({"blocks": 4, "size": 4}, "something is left to train"),
        ({"blocks": 4, "size": 0}, "whole number from 1"),
        ({"blocks": 4}, r"\['size'\] missing"),
    ):
        with pytest.raises(ValueError, match=message):
            study({"w": {"title": "W", "windows": windows, "config": {"x": "${first}"}}}, ["w"])
    with pytest.raises(ValueError, match="no TaskEvaluation"):
        windows_study({"model": {}, "data": {}, "trainer": {}}, Path("c.yaml"), 1, 1, [0], blocks=2)
