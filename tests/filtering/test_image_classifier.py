"""Image classifiers of a filter: transformers' pipeline and timm's own forward pass on the same photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from support.image_classifiers import IMAGE_LABELS, photographs, write_timm, write_vit
from support.instruction_files import llava_row, write_rows
from timm.data import create_transform, resolve_model_data_config
from transformers import ViTModel, pipeline

from hpa_lightning.data import Record
from hpa_lightning.data.images import read_rgb
from hpa_lightning.data.record import user_turn
from hpa_lightning.filtering import Assessment, FilterRule, ImageClassifier, filter_data


def record(*images: Any) -> Record:
    return Record("1", user_turn("What?", len(images)), images)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_scores_are_the_pipelines(problem: str | None, tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit", problem)
    pictures = [read_rgb(path) for path in photographs(tmp_path)]
    part = ImageClassifier(folder, ["nude"], device="cpu", batch_size=2)
    asked = pipeline("image-classification", model=folder, device="cpu")
    for scores, expected in zip(part.scores(pictures), asked(pictures, top_k=None), strict=True):
        assert scores == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)
    assert len({round(scores["nude"], 4) for scores in part.scores(pictures)}) == 3


@pytest.mark.parametrize("named", [True, False])
def test_scores_are_timms(named: bool, tmp_path: Path) -> None:
    folder = write_timm(tmp_path / "timm", named)
    pictures = [read_rgb(path) for path in photographs(tmp_path)]
    names = None if named else IMAGE_LABELS
    part = ImageClassifier(folder, ["nude"], label_names=names, device="cpu", batch_size=2)
    model: Any = timm.create_model("resnet10t", num_classes=3).eval()
    model.load_state_dict(torch.load(f"{folder}/pytorch_model.bin", weights_only=True))
    transform: Any = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        expected = torch.cat([model(transform(picture)[None]).softmax(-1) for picture in pictures]).tolist()
    for scores, row in zip(part.scores(pictures), expected, strict=True):
        assert list(scores) == IMAGE_LABELS and list(scores.values()) == pytest.approx(row, abs=1e-5)
    assert len({round(row[1], 4) for row in expected}) == 3


def test_the_worst_picture_speaks(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    paths = photographs(tmp_path)
    part = ImageClassifier(folder, ["nude"], device="cpu", batch_size=2)
    scores = [one["nude"] for one in part.scores([read_rgb(path) for path in paths])]
    worst = max(range(3), key=lambda index: scores[index])
    least = sorted(scores)[1] + 1e-4  # only the worst picture passes
    findings = ImageClassifier(folder, {"nude": least}, device="cpu", batch_size=2)(
        [record(*map(str, paths)), record()]
    )
    assert (findings[0].assessment, findings[0].where) == (Assessment.HARMFUL, f"image {worst}")
    assert findings[0].score == pytest.approx(scores[worst]) and findings[0].categories == ("nude",)
    assert findings[1].assessment is Assessment.NOTHING
    memory = part([record(Image.open(paths[0]).convert("RGB"))])[0]
    assert memory.score == pytest.approx(scores[0])


def test_pictures_that_cannot_be_opened(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    rows = [llava_row(n, "What?", "A lake.", "{}.png") for n in range(4)] + [llava_row(4, "What?", "A lake.", None)]
    for n in range(3):
        Image.new("RGB", (8, 8), (n * 50, 0, 0)).save(tmp_path / f"{n}.png")
    broken = (tmp_path / "1.png").read_bytes()[:40]
    (tmp_path / "1.png").write_bytes(broken)
    path = write_rows(tmp_path / "train.json", rows)
    parts = {"images": ImageClassifier(folder, {"nude": 1.0}, device="cpu")}
    with pytest.raises(ValueError, match=r"train.json\[3\]: image file .*3.png' does not exist; check image_folder"):
        filter_data(path, parts, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"train.json\[1\]: unreadable, says 'images': image file .*1.png"):
        filter_data(path, parts, tmp_path / "out")
    (tmp_path / "3.png").unlink()
    for policy, kept in (("drop", [0, 2, 4]), ("keep", [0, 1, 2, 3, 4])):
        outcome = filter_data(path, parts, tmp_path / policy, rule=FilterRule(unreadable=policy))  # type: ignore[arg-type]
        ids = [row["id"] for row in json.loads(outcome.kept.read_text())]
        assert ids == [rows[n]["id"] for n in kept]
        counts = json.loads((tmp_path / policy / "counts.json").read_text())["parts"][0]
        assert (counts["Unreadable"], counts["Nothing to assess"], counts["Harmless"]) == (2, 1, 2)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    vit, unnamed = write_vit(tmp_path / "vit"), write_timm(tmp_path / "timm", named=False)
    weightless = write_timm(tmp_path / "weightless")
    for file in (tmp_path / "weightless").glob("*.*"):
        if file.name != "config.json":
            file.unlink()
    ViTModel.from_pretrained(vit).save_pretrained(tmp_path / "headless")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["nudes"]}, "no label 'nudes'; did you mean 'nude'?"),
        ({"labels": []}, "labels is []"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": 0}, "workers 0"),
        ({"model": unnamed}, "it has 3 labels, and 0 names are known; give label_names"),
        ({"model": weightless}, "holds neither model.safetensors nor pytorch_model.bin"),
        ({"model": "/nowhere/at/all"}, "model='/nowhere/at/all' cannot be loaded as an image classifier"),
        ({"model": "no_such_timm_model"}, "model='no_such_timm_model' cannot be loaded as an image classifier"),
        ({"model": str(tmp_path / "headless")}, "its file lacks the weights ['classifier.bias'"),
    ]
    for settings, said in cases:
        with pytest.raises(ValueError) as raised:
            ImageClassifier(**{"model": vit, "labels": ["nude"], **settings}).load()
        assert "ImageClassifier" in str(raised.value) and said in str(raised.value), settings
