"""Writing whole or not at all, and paths that data name."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from pathlib import Path

import pytest
import torch

import hpa_lightning
from hpa_lightning.callbacks.checkpoint_files import WholeCheckpointIO
from hpa_lightning.files import naming_path, path_inside, plain_name, staged, whole_file, whole_folder, write_text


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    write_text(path, "old")
    with pytest.raises(KeyError), whole_file(path) as beside:
        beside.write_text("ne")
        raise KeyError
    assert path.read_text() == "old" and [item.name for item in path.parent.iterdir()] == ["file.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_the_system_s_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with (
        pytest.raises(
            OSError, match=r"No space left on device; it was not written, what was there is unchanged.*file'"
        ),
        whole_file(path),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x")
    assert path.read_text() == "old"
    with pytest.raises(PermissionError, match="elsewhere") as raised, whole_file(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "elsewhere")
    assert "unchanged" not in str(raised.value)  # it is about another file


def test_a_folder_appears_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyError), whole_folder(path) as folder:
        (folder / "a").write_text("1")
        raise KeyError
    assert not list(tmp_path.iterdir())
    # What a kill leaves: the mark and some files.
    left = tmp_path / "out.partial"
    (left / "deep").mkdir(parents=True)
    (left / ".being-written").touch()
    (left / "deep" / "old").touch()
    with whole_folder(path) as folder:
        assert not path.exists() and not (left / "deep").exists()
        with pytest.raises(ValueError, match="another process"), whole_folder(path):
            pass
        (folder / "a").write_text("1")
    assert [item.name for item in path.iterdir()] == ["a"] and not left.exists()
    with pytest.raises(ValueError, match="exists already"), whole_folder(path):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")  # no folder could take its name
    with pytest.raises(ValueError, match="link exists already"), whole_folder(tmp_path / "link"):
        pass
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="was not left by a killed command"), whole_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine.partial" / "thesis.tex").exists()


def test_staged_files_replace_those_that_are_there_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "other").write_text("mine")
    with pytest.raises(KeyError), staged(tmp_path) as inside:
        (inside / "page.html").write_text("new")
        raise KeyError
    assert (tmp_path / "page.html").read_text() == "old"
    with staged(tmp_path, last=["page.html"]) as inside:
        (inside / "page.html").write_text("new")
        (inside / "figures").mkdir()
        (inside / "figures" / "a.png").write_text("png")
        assert (tmp_path / "page.html").read_text() == "old"
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["figures/a.png", "other", "page.html"] and (tmp_path / "page.html").read_text() == "new"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "", None, 3, "a\0b", "C:\\x", "a\\..\\..\\x", "link/x"]
)
def test_a_path_from_data_stays_in_its_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    with pytest.raises(ValueError, match=r"the file names .*; expected a path within"):
        path_inside(folder, name, "the file")
    assert path_inside(folder, "images/a.jpg", "the file") == folder / "images" / "a.jpg"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", " ", "a\\b", "a\nb", None])
def test_a_name_from_data_is_one_part_of_a_path(name: object) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        plain_name(name, "the condition")
    assert plain_name("clean, 5 %", "the condition") == "clean, 5 %"


def test_a_full_disk_tells_the_free_space(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    with (
        pytest.raises(OSError, match=rf"No space left.*MB are free in {re.escape(str(tmp_path))}.*a\.txt"),
        naming_path(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_that_does_not_fit_names_the_reason_and_the_file(tmp_path: Path) -> None:
    """With a limit on the size of files, as the disk's own is; torch's error is "unexpected pos ..."."""
    path = tmp_path / "last.ckpt"
    path.write_text("the last one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; it was not written.*last\.ckpt"):
            WholeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.randn(100, 1000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "the last one" and os.listdir(tmp_path) == ["last.ckpt"]


def test_one_module_gives_finished_things_their_names() -> None:
    """What is renamed into place elsewhere would not be flushed; `run_folder` moves an interrupted run aside."""
    root = Path(hpa_lightning.__file__).parent
    found = {file.name for file in root.rglob("*.py") if re.search(r"\bos\.(replace|rename)\(", file.read_text())}
    assert found == {"files.py", "run_folder.py"}
    assert not any(re.search(r"\bimport fcntl|\bfcntl\.", file.read_text()) for file in root.rglob("*.py"))


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", json.dumps({"é": "caf\udce9"}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": "caf\udce9"}
