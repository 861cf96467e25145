"""What fuse writes: interrupted and continued, one process at a time, on a full disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from support.fused_checkpoints import RETENTION, SAFETY, SETTINGS, TASK, contents
from transformers import AutoModelForImageTextToText

from hpa_lightning import functional as F
from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.fuse.diagonals import FusionOutput


class Interruption(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "at", "when"),
    [
        (*place, when)
        for place in (
            ("copy_weights", ()),
            ("save_diagonals", ("safety", 1)),
            ("save_diagonals", ("task", 2)),
            ("write_part", (0,)),
            ("write_part", (2,)),
            ("finish", ()),
        )
        for when in ("before", "after")
        if (*place, when) != ("finish", (), "after")  # then it is complete
    ],
)
def test_interrupted_and_continued_gives_the_same_files(
    method: str, at: tuple, when: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[[str], Any] = lambda name: fuse_checkpoints(*pair, tmp_path / name, SAFETY, TASK, **SETTINGS)  # noqa: E731
    run("whole")
    original, calls = getattr(FusionOutput, method), []

    def interrupted(self: FusionOutput, *arguments: Any) -> Any:
        calls.append(arguments[: len(at)])
        if arguments[: len(at)] == at and when == "before":
            raise Interruption
        result = original(self, *arguments)
        if arguments[: len(at)] == at:
            raise Interruption
        return result

    monkeypatch.setattr(FusionOutput, method, interrupted)
    with pytest.raises(Interruption):
        run("broken")
    done = [call for call in calls if when == "after" or call != at]
    assert not (tmp_path / "broken").exists()
    with pytest.raises(ValueError, match="model_type"):  # there is no config.json
        AutoModelForImageTextToText.from_pretrained(tmp_path / "broken.partial")

    repeated: list[tuple] = []
    monkeypatch.setattr(
        FusionOutput, method, lambda self, *rest: repeated.append(rest[: len(at)]) or original(self, *rest)
    )
    run("broken")
    assert not at or not set(done) & set(repeated)  # what was finished is not done again
    assert at in repeated or when == "after"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert not (tmp_path / "broken.partial").exists()


def test_a_torn_write_is_repeated(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse_checkpoints(*pair, tmp_path / "whole", SAFETY, TASK, **SETTINGS)
    fuse, calls = F.harmonious_fusion, []

    def failing(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 10:  # in the middle of the second block: two of its layers are written
            raise Interruption
        return fuse(*arguments, **settings)

    monkeypatch.setattr(F, "harmonious_fusion", failing)
    for _ in range(2):
        try:
            fuse_checkpoints(*pair, tmp_path / "broken", SAFETY, TASK, **SETTINGS)
        except Interruption:
            assert len(calls) == 10
    assert len(calls) == 10 + 14
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_interrupted_run_is_not_continued_with_other_settings(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FusionOutput, "finish", lambda *_: (_ for _ in ()).throw(Interruption()))
        with pytest.raises(Interruption):
            fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    other = SETTINGS | {"retention": replace(RETENTION, p_max=30.0)}
    with pytest.raises(ValueError, match="started with other retention"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **other)
    with pytest.raises(ValueError, match="started with other records"):
        fuse_checkpoints(*pair, tmp_path / "out", TASK, SAFETY, **SETTINGS)


def test_existing_folders_are_not_touched(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link exists already"):
        fuse_checkpoints(*pair, tmp_path / "link", SAFETY, TASK)
    theirs = tmp_path / "new.partial" / "somebody's"
    theirs.parent.mkdir()
    theirs.write_text("work")
    with pytest.raises(ValueError, match="not an interrupted run"):
        fuse_checkpoints(*pair, tmp_path / "new", SAFETY, TASK)
    assert list(theirs.parent.iterdir()) == [theirs]


def test_one_process_at_a_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    progress = tmp_path / "out.partial" / "progress"
    progress.mkdir(parents=True)  # as a run leaves it that is killed at once
    with FileLock(progress / "lock"), pytest.raises(ValueError, match="another process"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    assert not progress.parent.exists() and not list((tmp_path / "out").glob("**/lock"))


def test_a_full_disk_is_told_beforehand(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"needs \d+ MB; the disk has \d+ MB left"):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    monkeypatch.undo()
    fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **SETTINGS)  # and it goes on
    assert not (tmp_path / "out.partial").exists()
