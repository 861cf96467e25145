"""The benchmark as a stream: shares, sizes, forms, and a fit on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.smol_folders import write_smol
from support.tiny_mllms import tiny_llava

from hpa_lightning.smol import SmolDataModule
from hpa_lightning.smol.request_forms import FORMS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_smol(tmp_path / "smol")


@pytest.fixture
def processor() -> Any:
    return tiny_llava()[1]


def test_sets_are_in_the_forms_and_of_the_size_asked_for(folder: Path, processor: Any) -> None:
    sizes = {"harm_size": 5, "test_size": 4}
    stream = SmolDataModule(
        str(folder), task_order=["words", "digits"], forms=list(FORMS), processor=processor, **sizes
    )  # fmt: skip
    stream.setup("fit")
    sets = {found.name: found for found in stream.evaluation_sets()}
    assert list(sets) == ["words", "digits", *(f"{kind}-{form}" for kind in ("harmful", "harmless") for form in FORMS)]
    found = [sum(len(batch["ids"]) for batch in stream.evaluation_dataloader(one)) for one in sets.values()]
    assert found == [4, 4, 5, 5, 5, 5, 5, 5]
    only = SmolDataModule(str(folder), forms=["text"], task_order=["words"], processor=processor)
    assert [one.name for one in only.evaluation_sets()] == ["words", "harmful-text", "harmless-text"]
    usual = SmolDataModule(str(folder), task_order=["words"], processor=processor)
    assert {one.name.split("-")[1] for one in usual.evaluation_sets()[1:]} == {"text", "picture"}


def test_without_xstest_over_refusal_is_left_out_with_one_warning(folder: Path, processor: Any) -> None:
    for path in (folder / "safety").glob("harmless-*"):
        path.unlink()
    with pytest.warns(UserWarning, match=r"over-refusal is not measured.*harmless-picture.*--xstest FILE") as said:
        stream = SmolDataModule(str(folder), task_order=["words"], processor=processor)
    assert len(said) == 1
    assert [found.name for found in stream.evaluation_sets()] == ["words", *(f"harmful-{form}" for form in FORMS[:2])]


def test_what_is_tested_does_not_depend_on_the_seed(folder: Path, processor: Any) -> None:
    asked = []
    for seed in (1, 2):
        stream = SmolDataModule(str(folder), seed, harm_size=5, task_order=["words"], processor=processor)
        stream.setup("fit")
        asked.append([b["ids"] for found in stream.evaluation_sets() for b in stream.evaluation_dataloader(found)])
    assert asked[0] == asked[1]


@pytest.mark.parametrize(("share", "size"), [(0.0, 40), (0.2, 50), (0.5, 80)])
def test_ordinary_questions_are_the_share_of_the_samples_that_was_asked_for(
    folder: Path, processor: Any, share: float, size: int
) -> None:
    stream = SmolDataModule(str(folder), ordinary_share=share, task_order=["words"], processor=processor)
    data = stream.tasks[0].train
    records = json.loads(Path(data).read_text()) if isinstance(data, str) else data.read()  # type: ignore[union-attr]
    assert len(records) == size
    if share:
        assert sum(record.id.startswith("ordinary") for record in records) == size - 40


def test_replay_injection_and_calibration_are_set_up(folder: Path, processor: Any) -> None:
    stream = SmolDataModule(
        str(folder),
        task_order=["words", "digits"],
        harmful_ratio=0.05,
        replay_size=4,
        safety_replay_size=8,
        train_size=20,
        harm_size=5,
        processor=processor,
    )
    stream.setup("fit")
    assert len(stream.harmful_calibration_records()) == 9
    assert stream.harmful_injection is not None and stream.harmful_injection.count(20) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_order": ["clothes"]}, r"task_order names \['clothes'\]; .* has digits, words"),
        ({"forms": ["sound"]}, r"forms is \['sound'\]"),
        ({"ordinary_share": 1.5}, r"ordinary_share is 1\.5"),
        ({"replay_share": 0.1}, r"replay_share is 0\.1, but replay_size is 0"),
    ],
)
def test_what_cannot_be_is_an_error(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmolDataModule(str(folder), **options)


def test_without_a_built_folder_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hpa-lightning benchmark build smol --output"):
        SmolDataModule(str(tmp_path))
