"""Questions about pictures: the answer is what the picture holds."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from hpa_lightning.data.nano import questions
from hpa_lightning.data.nano.lexicon import NUMBERS, PLACES
from hpa_lightning.data.nano.skills import random_bars, random_road, random_scene

DRAWS = 400


def asked(ask: object, make: object, name: str) -> Iterator[tuple[object, str, str]]:
    for seed in range(DRAWS):
        rng = random.Random(seed)
        content = make(rng)  # type: ignore[operator]
        yield content, *ask(rng, **{name: content})  # type: ignore[operator]


def test_counts_places_and_descriptions_are_those_of_the_scene() -> None:
    seen = set()
    for scene, question, answer in asked(questions.ask_shapes, random_scene, "scene"):
        assert isinstance(scene, dict)
        shapes = {shape: (PLACES[place], colour) for place, (colour, shape) in scene.items()}
        if re.search("how many shapes|count the|number of shapes", question):
            seen.add("count")
            assert NUMBERS[len(scene)] in answer.split(" ") or answer.rstrip(".").endswith(NUMBERS[len(scene)])
        elif re.search("describe|list all|tell me about", question):
            seen.add("description")
            expected = {f"{colour} {shape} at the {place}" for shape, (place, colour) in shapes.items()}
            assert set(answer.rstrip(".").split(", ")) == expected
        elif match := re.search(r"(?:is there a|see a|is a) (\w+)", question):
            seen.add("presence")
            assert answer.startswith("yes" if match[1] in shapes else "no")
        elif match := re.search(r"a is (\w+), b is (\w+), c is (\w+)", question):
            seen.add("letter")
            assert [option for option in match.groups() if option in shapes] == [match["abc".index(answer) + 1]]
    assert seen == {"count", "description", "presence", "letter"}


def test_extremes_and_trends_are_those_of_the_bars() -> None:
    for bars, question, answer in asked(questions.ask_bars, random_bars, "bars"):
        heights = dict(bars)  # type: ignore[call-overload]
        words = re.findall(r"\w+", answer)
        if "tallest" in question or "highest" in question:
            assert heights[words[-1]] == max(heights.values())
        elif "shortest" in question or "lowest" in question:
            assert heights[words[-1]] == min(heights.values())
        elif match := re.search(r"how high is the (\w+)|value of (\w+)", question):
            assert words[-1] == NUMBERS[heights[match[1] or match[2]]]
        elif "trend" in question or "rise or fall" in question:
            rising = [b > a for a, b in zip(list(heights.values()), list(heights.values())[1:], strict=False)]
            assert words[-1] == ("rise" if all(rising) else "mixed" if any(rising) else "fall")
        else:
            assert words == list(heights)


def test_lanes_and_lights_are_those_of_the_road() -> None:
    for road, question, answer in asked(questions.ask_road, random_road, "road"):
        assert isinstance(road, dict)
        if match := re.search(r"the (person|car)\?|find the (person|car)|lane is the (person|car)", question):
            lane = road[next(filter(None, match.groups()))]
            assert lane in answer or (lane == "none" and answer.startswith("there is no"))
        elif "describe" in question or "tell me" in question:
            assert answer == f"light {road['light']}, person {road['person']}, car {road['car']}."
        else:
            assert answer.rstrip(".").endswith(road["light"])


@pytest.mark.parametrize("seed", range(40))
def test_words_are_repeated_picked_and_turned_round(seed: int) -> None:
    question, answer = questions.ask_text(random.Random(seed))
    words = question.split(": ")[1].split()
    kinds = {"first": words[:1], "last": words[2:], "backwards": words[::-1]}
    expected = next((value for key, value in kinds.items() if key in question.split(": ")[0]), words)
    assert answer.split() == expected
