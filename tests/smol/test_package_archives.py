"""Members out of wheels and Debian packages: what is asked for, whole, inside the folder."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from support.package_files import debian_file, needs_dpkg, wheel_file

from hpa_lightning.smol.package_archives import file_digest, files_digest, unpack_debian, unpack_wheel


def test_what_is_asked_for_is_unpacked_and_nothing_else(tmp_path: Path) -> None:
    archive = wheel_file(
        tmp_path / "a.whl", {"a/data/x.json": b"{}", "a/data/x.ogg": b"s", "a/code.py": b"1/0", "L": b"l"}
    )
    unpack_wheel(archive, tmp_path / "out", ["a/data/", "L"], [".json"])
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "L",
        "a/data/x.json",
    ]


@pytest.mark.parametrize("name", ["a/../../evil", "a/data\\..\\..\\evil"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = wheel_file(tmp_path / "in" / "a.whl", {name: b"evil"})
    with pytest.raises(ValueError, match="expected a path within"):
        unpack_wheel(archive, tmp_path / "in" / "out", ["a/"])
    assert not list(tmp_path.rglob("evil"))


def test_a_torn_wheel_is_named(tmp_path: Path) -> None:
    archive = wheel_file(tmp_path / "a.whl", {"a/x": b"0" * 10_000})
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(ValueError, match="no whole wheel"):
        unpack_wheel(archive, tmp_path / "out", ["a/"])


@needs_dpkg
def test_a_debian_package_is_read_without_being_installed(tmp_path: Path) -> None:
    archive = debian_file(tmp_path / "p.deb", {"usr/share/p/x.txt": b"A cow.", "usr/share/p/x.ogg": b"moo"})
    unpack_debian(archive, tmp_path / "out", ["usr/share/p/"], [".txt"])
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["x.txt"]
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no whole Debian package"):
        unpack_debian(archive, tmp_path / "out", ["usr/share/p/"])


@needs_dpkg
def test_a_member_of_a_debian_package_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    archive = debian_file(tmp_path / "in" / "p.deb", {"usr/../../evil": b"evil"})
    with pytest.raises(ValueError, match="expected a path within"):
        unpack_debian(archive, tmp_path / "in" / "out", ["usr/"])
    assert not list(tmp_path.rglob("evil"))


def test_without_dpkg_a_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no program dpkg-deb .*--tasks"):
        unpack_debian(tmp_path / "p.deb", tmp_path / "out", ["usr/"])


def test_the_digest_is_of_names_and_contents_of_what_is_read(tmp_path: Path) -> None:
    assert files_digest(tmp_path / "none", ["a/"]) is None
    for name, content in {"a/x": "1", "a/y": "2", "z": "3"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    before = files_digest(tmp_path, ["a/"])
    (tmp_path / "z").write_text("other")
    assert files_digest(tmp_path, ["a/"]) == before
    (tmp_path / "a" / "y").rename(tmp_path / "a" / "w")
    assert files_digest(tmp_path, ["a/"]) != before
    told = subprocess.run(["sha256sum", tmp_path / "z"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert file_digest(tmp_path / "z") == told


def test_zip_entries_of_folders_are_no_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.mkdir("a/data") if hasattr(archive, "mkdir") else archive.writestr("a/data/", "")
        archive.writestr("a/data/x", "1")
    unpack_wheel(tmp_path / "a.whl", tmp_path / "out", ["a/"])
    assert (tmp_path / "out/a/data/x").read_text() == "1"
