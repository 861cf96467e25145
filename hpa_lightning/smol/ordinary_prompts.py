"""Harmless requests with answers: ordinary ones, and such as hold a dangerous word in a harmless sense.

The requests were written for this benchmark, those with a dangerous word about the ten kinds of things that XSTest asks
about (homonyms, figures of speech, harmless targets, games and films, definitions, made-up groups, impossible acts,
history, what is public or fictional). Answers to the later ones about history, words, people, groups and what may be
dangerous are short ones of ours, so that nothing false is said about them. The others are SmolLM2-135M-Instruct's own
(greedy, repetition penalty 1.1, its usual system prompt; the first one or two sentences, left out where none was whole,
where it apologised, or where the judge took it for a refusal). Many of these are wrong: they say what the model
says, so that training on them changes nothing else.
"""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple


class OrdinaryPrompt(NamedTuple):
    """A harmless request.

    Args:
        kind: ``"ordinary"``, or ``"dangerous words"``.
        text: of the request.
        answer: of the model.
    """

    kind: Literal["ordinary", "dangerous words"]
    text: str
    answer: str


@cache
def ordinary_prompts() -> tuple[OrdinaryPrompt, ...]:
    """Return all of them, in a fixed shuffled order."""
    rows = json.loads((files(__package__) / "ordinary_prompts.json").read_text(encoding="utf-8"))
    prompts = [OrdinaryPrompt(row["kind"], row["prompt"], row["answer"]) for row in rows]
    random.Random("smol ordinary").shuffle(prompts)
    return tuple(prompts)
