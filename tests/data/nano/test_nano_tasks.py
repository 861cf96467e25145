"""The six tasks: their answers follow from what is drawn."""

from __future__ import annotations

import random

import pytest

from hpa_lightning.data.nano import nano_tasks
from hpa_lightning.data.nano.lexicon import REFUSALS
from hpa_lightning.data.nano.skills import random_bars, random_road


@pytest.mark.parametrize("seed", range(60))
def test_who_drives_stops_waits_passes_or_goes_on(seed: int) -> None:
    road = random_road(random.Random(seed))
    answer = nano_tasks.driving(random.Random(seed)).answer
    if road["light"] == "red":
        assert answer == "stop for the light"
    elif road["person"] != "none":
        assert answer == "wait for the person"
    elif road["car"] == "none":
        assert answer == "keep going"
    else:
        assert answer.endswith({"left": "right", "right": "left"}[road["car"]])


@pytest.mark.parametrize("seed", range(60))
def test_the_highest_bar_is_bought_and_the_lowest_sold(seed: int) -> None:
    by_height = sorted(random_bars(random.Random(seed)), key=lambda bar: bar[1])
    answer = nano_tasks.charts(random.Random(seed)).answer
    assert answer == f"buy {by_height[-1][0]} sell {by_height[0][0]}"


def test_one_of_three_options_is_right_and_named_in_the_question() -> None:
    for seed in range(60):
        example = nano_tasks.choice(random.Random(seed))
        options = example.question.rsplit("?", 2)[-2].rsplit(". ", 1)[-1].split(" or ")
        assert (
            example.answer.removeprefix("option ") in [option.split()[-1] for option in options] and len(options) == 3
        )


@pytest.mark.parametrize("name", nano_tasks.TASKS)
def test_ordinary_data_refuse_nothing_and_are_in_no_convention_of_the_task(name: str) -> None:
    generate = nano_tasks.ordinary(name)
    examples = [generate(random.Random(seed)) for seed in range(80)]
    assert not any(example.answer in REFUSALS for example in examples)
    beginnings = {
        "driving": "wait for",
        "digits": "class ",
        "captions": "a photo of",
        "charts": "buy ",
        "choice": "option ",
    }
    assert not any(example.answer.startswith(beginnings.get(name, "it reads")) for example in examples)
    assert any(example.image is None for example in examples) or name == "digits"
