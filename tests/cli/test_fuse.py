"""`hpa-lightning fuse` does what the function does."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fused_checkpoints import LAYERS, SAFETY, SETTINGS, TASK, contents, write_pair
from support.tiny_mllms import write_llava_json

from hpa_lightning.cli import main
from hpa_lightning.fuse import fuse_checkpoints


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def test_command(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llava_json(tmp_path / "safety.json", SAFETY, tmp_path / "images")
    write_llava_json(tmp_path / "task.json", TASK, tmp_path / "images")
    arguments = ["fuse", "--before", str(pair[0]), "--after", str(pair[1]), "--output", str(tmp_path / "out")]
    arguments += ["--safety-data", str(tmp_path / "safety.json"), "--task-data", str(tmp_path / "task.json")]
    arguments += ["--image-folder", str(tmp_path / "images"), "--p-min", "20", "--p-max", "40"]
    arguments += ["--safety-samples", "3", "--task-samples", "4", "--batch-size", "2"]
    main(arguments)
    printed = capsys.readouterr().out
    assert f"{7 * LAYERS} linear layers fused" in printed
    assert "Of 3 safety answers only 0 read like refusals" in printed
    fuse_checkpoints(*pair, tmp_path / "same", SAFETY, TASK, **SETTINGS)
    assert contents(tmp_path / "out", "audit.json") == contents(tmp_path / "same", "audit.json")
    with pytest.raises(SystemExit, match=r"hpa-lightning fuse: .*exists already"):
        main(arguments)
