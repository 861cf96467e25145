"""Pictures out of the inputs, divided once."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.package_files import given_packages, needs_packages
from support.smol_inputs import tiny_find

from hpa_lightning.smol.inputs import find_input
from hpa_lightning.smol.picture_sources import CLOTHES, clothes, digits, divided, drawings, enlarged, stamps


def test_groups_stay_together_and_too_few_items_are_an_error() -> None:
    found = divided(range(100), {"test": 20, "stages": 10, "train": 1000}, "a", lambda number: number // 2)
    assert sorted(number for items in found.values() for number in items) == list(range(100))
    of = {number: split for split, items in found.items() for number in items}
    assert all(of[number] == of[number ^ 1] for number in range(100))
    with pytest.raises(ValueError, match=r"10 items are too few .*\['test'\] would not be full"):
        divided(range(10), {"test": 20, "train": 5}, "a")


def test_pictures_with_the_same_caption_come_into_one_split(tmp_path: Path) -> None:
    found = stamps(tiny_find(tmp_path)("tuxpaint-stamps-default"))
    captions = [{stamp.caption for stamp in items} for items in found.values()]
    assert not captions[0] & captions[1] and not captions[0] & captions[2] and not captions[1] & captions[2]
    assert {stamp.kind for stamp in found["train"]} == {"animals", "food", "seasonal"}


def test_tests_are_of_the_sources_own_test_pictures(tmp_path: Path) -> None:
    find = tiny_find(tmp_path)
    sizes = {"stages": 20, "train": 30, "test": 25}
    found = clothes(find("dataset-fashion-mnist"), sizes)  # type: ignore[arg-type]
    assert {split: len(items) for split, items in found.items()} == sizes
    assert not {one[0] for one in found["stages"]} & {one[0] for one in found["train"]}
    drawn = drawings(find("easy-vqa"), sizes)  # type: ignore[arg-type]
    assert all("/test/" in one.path.as_posix() for one in drawn["test"])
    for one in drawn["train"]:
        assert all(answer in one.shape for _, answer in one.questions if answer != "yes")


def test_handwritten_digits_are_dark_on_light_and_smooth_when_enlarged() -> None:
    found = digits({"stages": 10, "train": 10, "test": 10})
    _, picture, name = found["test"][0]
    assert picture.shape == (8, 8) and picture.max() == 255 and name.isdigit()
    assert np.asarray(enlarged(picture, 112)).shape == (112, 112, 3)


@needs_packages("tuxpaint-stamps-default", "dataset-fashion-mnist", "easy-vqa")
def test_the_real_sources_have_what_the_tasks_need(tmp_path: Path) -> None:
    find = partial(find_input, cache=tmp_path, given=given_packages())
    found = stamps(find("tuxpaint-stamps-default"))
    assert len(found["test"]) >= 200 and len(found["train"]) >= 350
    assert {one.caption for one in found["train"]} >= {"A hammer."}
    assert all(len(one.caption.split()) >= 1 and "=" not in one.caption for one in found["train"])
    shown = clothes(find("dataset-fashion-mnist"), {"stages": 1, "train": 500, "test": 200})
    assert {name for _, _, name in shown["test"]} == set(CLOTHES)
    for one in drawings(find("easy-vqa"), {"stages": 1, "train": 200, "test": 1})["train"]:
        assert all(answer in one.shape for _, answer in one.questions if answer not in ("yes", "no"))
