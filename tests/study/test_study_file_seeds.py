"""Seeds that change nothing, and headings that nothing fills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.study_files import STUDY, write

from hpa_lightning.study import read_study

UNSEEDED = {"seed_everything": 0, "data": {"init_args": {"seed": 0}}}


def test_two_seeds_of_one_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"study\.yaml, group 'first': the seeds 1 and 2 of 'plain' in 'clean' are the"
    ):
        read_study(write(tmp_path, base=UNSEEDED))


def test_seeds_of_two_groups_are_told_apart_too(tmp_path: Path) -> None:
    groups = {name: {"title": name, "methods": ["plain"], "seeds": [seed]} for name, seed in (("a", 1), ("b", 2))}
    with pytest.raises(ValueError, match=r"group 'b': the seeds 1 and 2 of 'plain'"):
        read_study(write(tmp_path, base=UNSEEDED, groups=groups))
    read_study(write(tmp_path, base=UNSEEDED, groups={"a": groups["a"]}))


def test_a_seed_may_come_with_the_run_that_a_method_starts_with(tmp_path: Path) -> None:
    seeded = {"title": "Plain", "config": {"seed_everything": "${seed}"}}
    later = {"title": "Later", "after": "plain", "config": {"start": "${start}"}}
    groups = {"a": {"title": "A", "methods": ["later"], "seeds": [1, 2]}}
    study = read_study(write(tmp_path, base=UNSEEDED, methods={"plain": seeded, "later": later}, groups=groups))
    assert len(study.cells()) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "At ${seed}"}, r"study\.yaml, title: 'At \$\{seed\}': nothing fills \$\{seed\}"),
        (
            {"methods": {**STUDY["methods"], "plain": {"title": "Seed ${seed}"}}},
            r"method 'plain': title: 'Seed \$\{seed\}': nothing fills",
        ),
        ({"methods": {**STUDY["methods"], "plain": {"title": "${folder}"}}}, r"title: '\$\{folder\}': nothing fills"),
        (
            {"groups": {"a": {"title": "A ${p}", "methods": ["sweep"], "seeds": [1]}}},
            r"group 'a', title: 'A \$\{p\}': nothing fills",
        ),
        (
            {
                "groups": {
                    "a": {"title": "A", "methods": ["sweep"], "seeds": [1], "x": {"setting": "p", "label": "${p}"}}
                }
            },
            r"group 'a', x, label: '\$\{p\}': nothing fills",
        ),
        ({"columns": {"Text ${p}": ["a"]}}, r"columns: 'Text \$\{p\}': nothing fills"),
    ],
)
def test_headings_hold_no_placeholder_that_nothing_fills(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(write(tmp_path, **changes))
