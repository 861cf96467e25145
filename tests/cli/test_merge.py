"""`hpa-lightning merge` does what the function does."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.merged_checkpoints import merge, models
from support.tiny_mllms import tiny_llava

from hpa_lightning.cli import main
from hpa_lightning.merge import MergeSettings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(lambda: tiny_llava(2), tmp_path_factory.mktemp("llava"))


def test_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["merge", "--task", str(folders["task"]), "--safety", str(folders["safety"]), "--output"]
    main([*command, str(tmp_path / "out"), "--base", str(folders["base"]), "--method", "ties", "--density", "0.4"])
    assert "tensors merged, 0 the same in all models, 0 kept" in capsys.readouterr().out
    merge(folders, tmp_path / "same", MergeSettings("ties", density=0.4))
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("same", "out")]
    assert files[0] == files[1]
    for arguments, message in (
        ([str(tmp_path / "out")], "exists already"),
        (
            [str(tmp_path / "new"), "--ratio", "1.2"],
            r"ratio is 1.2; expected .*'s share, in \[0, 1\]",
        ),
        ([str(tmp_path / "new"), "--density", "0.2"], "density is 0.2, which linear does not use; leave it out"),
        ([str(tmp_path / "new"), "--weights", "[1.0]"], "weights has 1 numbers; expected two"),
        ([str(tmp_path / "new"), "--method", "tie"], "did you mean 'ties'"),
    ):
        with pytest.raises(SystemExit, match=f"hpa-lightning merge: .*{message}"):
            main([*command, *arguments])
