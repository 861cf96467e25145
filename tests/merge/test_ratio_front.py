"""The front of merging ratios on the embedded benchmark, its comparisons, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.html_structure import Structure
from support.model_folders import tuned, write

from hpa_lightning.cli import main
from hpa_lightning.data.nano import load_nano_model
from hpa_lightning.merge import MergeSettings
from hpa_lightning.merge.question_scores import QuestionScores
from hpa_lightning.merge.ratio_front import merge_front, parse_ratios


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The aligned nano model, one that was moved, and an evaluation of few questions."""
    root = tmp_path_factory.mktemp("nano")
    model, processor = load_nano_model()
    write(root / "safety", model, processor)
    write(root / "task", tuned(load_nano_model()[0], 1, 0.3), processor)
    data = {"class_path": "hpa_lightning.data.nano.NanoDataModule"}
    sizes = {"test_size": 6, "train_size": 16, "calibration_size": 8, "task_order": ["charts", "digits"]}
    config = {
        "model": {"class_path": "hpa_lightning.modules.NanoModule"},
        "data": data | {"init_args": sizes},
        "trainer": {"accelerator": "cpu", "max_epochs": -1, "enable_progress_bar": False, "logger": False},
    }
    (root / "evaluation.yaml").write_text(yaml.safe_dump(config))
    return {name: str(root / name) for name in ("task", "safety", "evaluation.yaml")}


def command(pair: dict[str, str], output: Path, *more: str) -> list[str]:
    given = ["--task", pair["task"], "--safety", pair["safety"], "--evaluation", pair["evaluation.yaml"]]
    return ["merge", *given, "--output", str(output), "--bootstrap", "500", *more]


def test_a_front_is_resumed_refined_and_picks_a_ratio(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpa_lightning.merge.folder_evaluation import FolderEvaluation

    original, evaluated = FolderEvaluation.run, []

    def counting(self: Any, folder: Any, output: Path) -> None:
        if len(evaluated) == 2:
            evaluated.append("interrupted")
            raise KeyboardInterrupt
        original(self, folder, output)
        evaluated.append(output.name)

    monkeypatch.setattr(FolderEvaluation, "run", counting)
    output = tmp_path / "front"
    with pytest.raises(SystemExit):
        main(command(pair, output, "--front", "0:1:0.5"))
    assert evaluated == ["task", "safety", "interrupted"] and not (output / "front.html").exists()
    main(command(pair, output, "--front", "0:1:0.5", "--budget", "1.0"))
    assert evaluated[3:] == ["0.5"]
    assert "3 models to compare, 2 evaluated already" in capsys.readouterr().out
    main(command(pair, output, "--front", "0:1:0.25", "--budget", "0.0"))
    assert evaluated[4:] == ["0.25", "0.75"]
    found = json.loads((output / "front.json").read_text())
    assert [point["name"] for point in found["points"]] == ["task", "0.25", "0.5", "0.75", "safety"]
    assert found["questions"]["charts"] == ["task", 6]
    for point in found["points"]:
        low, high = point["safety"][1:]
        assert low <= point["safety"][0] <= high
        scores = QuestionScores.from_folder(output / "points" / point["name"])
        tasks = [scores.scores[name].mean() for name in scores.of_kind("task")]
        assert point["helpfulness"][0] == pytest.approx(np.mean(tasks))
    picked = found["picked"]
    merged = {path.name for path in output.glob("merged-*")}
    wanted = set() if picked in (None, "task", "safety") else {f"merged-{picked}"}
    assert wanted <= merged <= wanted | {"merged-0.5"}  # which the budget before may have picked
    page = Structure((output / "front.html").read_text())
    assert not [address for address in page.addresses if not address.startswith("data:")]
    assert (output / "front.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="was started with other method"):
        main(command(pair, output, "--front", "0:1:0.5", "--method", "slerp"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--front", "0:2:0.5"], "expected start:stop:step"),
        (["--front", "half"], "expected start:stop:step"),
        (["--front", "0:1:0.5", "--budget", "20"], "a fraction in"),
        (["--budget", "0.1"], "belong to --front"),
        (["--front", "0:1:0.5", "--bootstrap", "3"], "at least 100 resamples"),
    ],
)
def test_mistakes(more: list[str], message: str, pair: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"hpa-lightning merge: .*{message}"):
        main(command(pair, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_folders_of_others_and_configurations_without_data(pair: dict[str, str], tmp_path: Path) -> None:
    settings = {"settings": MergeSettings()}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    with pytest.raises(ValueError, match="exists and holds no front"):
        merge_front(pair["task"], pair["safety"], tmp_path / "theirs", None, [0.5], pair["evaluation.yaml"], **settings)
    (tmp_path / "bare.yaml").write_text("trainer: {}")
    with pytest.raises(ValueError, match=r"bare.yaml has no section data"):
        merge_front(pair["task"], pair["safety"], tmp_path / "out", None, [0.5], tmp_path / "bare.yaml", **settings)


def test_ratios() -> None:
    assert parse_ratios("0:1:0.1") == [number / 10 for number in range(11)]
    assert parse_ratios("0.5") == [0.5] and parse_ratios("0.3,0.1") == [0.1, 0.3]
