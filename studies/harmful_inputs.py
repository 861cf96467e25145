"""The embedded benchmark's harmful inputs by kind, wording and harm: what the case against null-space projection needs.

A *kind* is where the harm stands: in the request (text), in the picture (image), in the words within it (typeset). A
*wording* is a question ("how do i ...?") or an instruction ("explain how to ..."). A *harm* is known or held out:
known are weapons that are made, and of pictures the first half of the dangerous icons; held out are violence against
people, theft, and the other icons.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest

from hpa_lightning.data.nano import harm
from hpa_lightning.data.nano.adaptation import pictured
from hpa_lightning.data.nano.examples import Example, Split, draw
from hpa_lightning.data.nano.lexicon import HAZARD_ICONS, MAKE
from hpa_lightning.data.nano.nano_records import TEST_SEED, to_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet

KNOWN_ICONS = HAZARD_ICONS[: len(HAZARD_ICONS) // 2]
LONGEST_ANSWER = 14  # tokens, as NanoDataModule's
CALIBRATIONS = ("all", "text", "image", "typeset", "questions", "known harm", "look-alikes", "skills")
"""What a basis is calibrated on; the last two are harmless: requests in dangerous words, questions about pictures."""


def wording_of(example: Example) -> str:
    """``"question"`` or ``"instruction"``."""
    return "question" if "?" in example.question else "instruction"


def harm_of(kind: str, example: Example) -> str:
    """``"known"`` or ``"held out"``; the deed stands in the answer that the model should not give."""
    _, verb, _, thing, *_ = example.other.replace(",", "").split()
    known = thing in KNOWN_ICONS if kind == "image" else verb in MAKE
    return "known" if known else "held out"


def harmful_examples(
    kind: str, split: Split, count: int, seed: int | str, wording: str | None = None, harms: str | None = None
) -> list[Example]:
    """Different harmful inputs of a split.

    Args:
        kind: one of ``harm.SAFETY_KINDS``.
        split: which combinations of words.
        count: how many.
        seed: of the draw.
        wording: of one wording alone.
        harms: of one kind of harm alone.
    """
    generate = harm.harmful(kind, split)

    def chosen(rng: random.Random) -> Example:
        while True:
            example = generate(rng)
            if wording in (None, wording_of(example)) and harms in (None, harm_of(kind, example)):
                return example

    return draw(chosen, split, seed, count)


def calibration_examples(what: str, count: int, seed: int | str) -> list[Example]:
    """Inputs of the calibration split for one of :data:`CALIBRATIONS`; three kinds take turns where there are three."""
    if what in ("look-alikes", "skills"):
        generate: Callable[[random.Random], Example] = (
            harm.harmless("calibration", alarming=True) if what == "look-alikes" else pictured("calibration")
        )
        return draw(generate, "calibration", seed, count)
    kinds = harm.SAFETY_KINDS if what in ("all", "questions", "known harm") else (what,)
    wording = "question" if what == "questions" else None
    harms = "known" if what == "known harm" else None
    groups = [
        harmful_examples(kind, "calibration", len(range(number, count, len(kinds))), seed, wording, harms)
        for number, kind in enumerate(kinds)
    ]
    return [example for row in zip_longest(*groups) for example in row if example is not None]


def calibration_records(what: str, count: int, seed: int | str) -> list[Record]:
    """The same as records that end with what the aligned model should say."""
    return to_records(calibration_examples(what, count, seed), what.replace(" ", "-"), answered=True)


@cache
def scored_examples(count: int) -> dict[str, list[Example]]:
    """Kind -> ``count`` inputs of the test split; the first 100 are the benchmark's."""
    return {kind: harmful_examples(kind, "test", count, TEST_SEED) for kind in harm.SAFETY_KINDS}


def scored_sets(count: int) -> list[EvaluationSet]:
    """The three safety sets of :func:`scored_examples`."""
    return [
        EvaluationSet(f"harmful-{kind}", "safety", to_records(found, f"harmful-{kind}", False), None, LONGEST_ANSWER)
        for kind, found in scored_examples(count).items()
    ]


def by_group(kind: str, examples: Sequence[Example], unsafe: Sequence[bool]) -> dict[str, list[int]]:
    """``"text, question, known"`` -> inputs, and inputs that were not refused."""
    found: dict[str, list[int]] = {}
    for example, is_unsafe in zip(examples, unsafe, strict=True):
        counts = found.setdefault(f"{kind}, {wording_of(example)}, {harm_of(kind, example)}", [0, 0])
        counts[0] += 1
        counts[1] += int(is_unsafe)
    return found
