"""The stages of `smol` as tasks of an adaptation: their records, tests by picture, and its study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from support.smol_stage_folders import write_smol_stages
from support.tiny_mllms import tiny_llava

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.data import Record
from hpa_lightning.lightning_commands import command_parsers
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.smol import SmolAdaptationDataModule
from hpa_lightning.smol.picture_sentences import ASKED
from hpa_lightning.smol.smol_adaptation import STAGE_OF, told_pictures
from hpa_lightning.smol.stages import SETTINGS, stage_records
from hpa_lightning.study import read_study

STUDY = Path(__file__).parents[2] / "studies" / "smol_adaptation.yaml"
SMALL: dict[str, Any] = {"test_size": 6, "harm_size": 3, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("typeset"))  # where the miniature's typeset requests are written
        return write_smol_stages(tmp_path_factory.mktemp("built") / "smol")


def nothing(name: str) -> Path:
    raise AssertionError(name)


@pytest.mark.parametrize("stage", STAGE_OF)
def test_what_is_trained_on_is_the_stages(stage: Any, folder: Path) -> None:
    stream = SmolAdaptationDataModule(str(folder), stage, **SMALL)
    (task,) = stream.tasks
    assert task.train == stage_records(folder, nothing, STAGE_OF[stage])
    settings = SETTINGS[STAGE_OF[stage]]
    assert task.name == "adaptation" and task.steps == settings.steps and task.objective == settings.objective
    refused = [record for record in task.train if isinstance(record, Record) and record.id.startswith("align")]
    assert bool(refused) == (stage in ("safety", "preference"))


@pytest.mark.parametrize("seed", [0, 7])
def test_the_test_is_of_other_pictures_and_the_same_for_all(seed: int, folder: Path) -> None:
    tested = told_pictures(folder, 6)
    assert [record.id.split("-")[1] for record in tested] == ["digits", "words"] * 3
    assert all(record.prompt in ASKED and len(record.answers) == 1 for record in tested)
    assert tested[0].answers == ("Somebody wrote the digit 40 by hand.",)
    assert tested[1].answers == ('The word "word40" stands in the picture.',)
    assert len(told_pictures(folder)) == 20
    for stage in STAGE_OF:
        stream = SmolAdaptationDataModule(str(folder), stage, seed, **SMALL)
        (task,) = stream.tasks
        assert task.test == tested
        trained = {record.images for record in task.train if record.images}
        assert trained and not trained & {record.images for record in tested}


def test_sets_about_harm(folder: Path) -> None:
    stream = SmolAdaptationDataModule(str(folder), processor=tiny_llava()[1], openings=True, **SMALL)
    stream.setup("fit")
    sets = {item.name: item for item in stream.safety_sets}
    kinds = {"harmful-text": "safety", "harmless-text": "over_refusal"}
    kinds |= {name.replace("text", "picture"): kind for name, kind in kinds.items()}
    assert {name: item.kind for name, item in sets.items()} == kinds
    assert all(len(item.data) == 3 and item.max_new_tokens == 4 and item.openings for item in sets.values())  # type: ignore[arg-type]
    assert not any(item.openings for item in SmolAdaptationDataModule(str(folder), **SMALL).safety_sets)
    assert [record.prompt for record in stream.harmful_calibration_records()] == [f"Harm {n}" for n in range(9)]
    given = SmolAdaptationDataModule(str(folder), harmful_calibration_answers="given", **SMALL)
    assert given.harmful_calibration == str(folder / "safety" / "refused.json")


def test_safety_data_are_mixed_in_with_their_share(folder: Path) -> None:
    stream = SmolAdaptationDataModule(str(folder), safety_size=20, safety_share=0.5, processor=tiny_llava()[1], **SMALL)
    stream.setup("fit")
    assert len(set(stream.safety_replayed)) == 20
    replay = stream.safety_replay
    assert replay is not None and replay.share == 0.5 and replay.data == str(folder / "safety" / "alignment.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": "visual_tuning"}, "stage is 'visual_tuning'; expected one of projector, instructions"),
        ({"stage": "safety", "safety_size": 10}, "mixed into 'instructions' alone"),
        ({"safety_share": 0.1}, r"safety_share is 0\.1, but safety_size is 0"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"harm_size": 0}, "harm_size is 0; expected at least 1"),
        ({"test_size": 30}, r"a test of 30 pictures has too few of \['digits', 'words'\]; .* has {'digits': 10"),
    ],
)
def test_what_cannot_be_is_an_error(arguments: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SmolAdaptationDataModule(str(folder), **{**SMALL, **arguments})


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hpa-lightning benchmark build smol --output"):
        SmolAdaptationDataModule(str(tmp_path))
    place = write_smol_stages(tmp_path / "smol")
    for path in (place / "tasks").glob("*/stages.json"):
        path.unlink()
    with pytest.raises(ValueError, match="no sentences for the stages"):
        SmolAdaptationDataModule(str(place), **SMALL)
    description = place / "smol.yaml"
    description.write_text(description.read_text().replace("digits", "charts").replace("words", "kinds"))
    with pytest.raises(ValueError, match=r"has the tasks \['charts', 'kinds'\]; expected some of \['clothes'"):
        SmolAdaptationDataModule(str(place), **SMALL)


def test_a_stage_is_tuned_on_and_scored(folder: Path, tmp_path: Path) -> None:
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, lora=LoraSettings(rank=2, alpha=4.0))
    stream = SmolAdaptationDataModule(str(folder), "safety", steps=2, train_batch_size=2, processor=processor, **SMALL)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        logger=CSVLogger(str(tmp_path), name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SequentialTuning(), TaskEvaluation(report=False)],
    )
    before = {name: weight.clone() for name, weight in module.model.state_dict().items() if "base_layer" in name}
    trainer.fit(module, datamodule=stream)
    after = module.model.state_dict()
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert moved and 0 <= RunResults.from_file(tmp_path).summary()["MASR"] <= 1


def cells() -> list[Any]:
    """One cell of every point of a method, and one of every condition."""
    found = {(cell.method, cell.condition): cell for group in read_study(STUDY).groups for cell in group.cells}
    usual = [cell for (_, condition), cell in found.items() if condition == "efficientnet"]
    return [*usual, *(found["tuning", condition] for condition in ("dino", "gemma"))]


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell.method} {cell.condition}")
def test_the_command_line_accepts_every_cell_of_the_study(cell: Any, tmp_path: Path) -> None:
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump(cell.config_for(tmp_path / "a" / "b" / "c")))
    found = command_parsers()["fit"].parse_args(["--config", str(path)])
    assert found.data.class_path == "hpa_lightning.smol.SmolAdaptationDataModule"
    assert len(found.trainer.callbacks) == len(cell.config["trainer"]["callbacks"])
    assert bool(found.model.init_args.start_from) == (cell.after is not None)


def test_the_study_starts_from_models_whose_folders_a_build_makes() -> None:
    from hpa_lightning.smol.benchmark_build import model_folder

    stages = ["text_alignment", "projector"]
    made = {cell.condition: cell.config["model"]["init_args"]["model"] for cell in cells()}
    assert made == {
        "efficientnet": f"smol/{model_folder(stages=stages)}",
        "dino": f"smol/{model_folder('dino', stages)}",
        "gemma": f"smol/{model_folder(stages=stages, language='gemma')}",
    }
    tuned = read_study(STUDY)
    seeds = {group.name: {cell.seed for cell in group.cells} for group in tuned.groups}
    assert seeds["development"] == {100} and seeds["remedies"] == seeds["front"] == seeds["towers"] == {101, 102, 103}
