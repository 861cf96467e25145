"""Files and folders that exist whole or not at all, and paths that data name and that do not leave their folder.

What is written here is written beside its place, flushed to the disk and renamed: a process that is killed, or a disk
that is full, leaves what stood there before.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

_UNFINISHED = ".unfinished"
_MARK = ".being-written"


@contextmanager
def whole_file(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; it takes that name when the block ends well, and else is removed.

    The folder is made if need be.

    Raises:
        OSError: as it came, with the file's name and what has become of it.
    """
    path = Path(path)
    beside = path.with_name(path.name + _UNFINISHED)
    with naming_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            flush(beside)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a UTF-8 file, whole or not at all; see :func:`whole_file`.

    Half a surrogate pair, which UTF-8 cannot hold (of a file's name that is not UTF-8, of an emoji that was cut), is
    written as its escape, such as ``\\udce9``; JSON reads it as what it was.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all; see :func:`whole_file`."""
    with whole_file(path) as beside:
        beside.write_bytes(content)


@contextmanager
def whole_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """Give the folder ``PATH.partial`` to fill; it becomes ``PATH`` in one step when the block ends well.

    What a killed process has left there is removed first; one process at a time fills it.

    Raises:
        ValueError: ``path`` exists and is not an empty folder, another process is filling it, or ``PATH.partial`` was
            not left by this function.
        OSError: as it came, with the folder's name and what has become of it.
    """
    path = Path(path)
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already and is not an empty folder; choose another one, or remove it.")
    partial = path.with_name(path.name + ".partial")
    mark = partial / _MARK
    if partial.exists() and not mark.is_file() and any(partial.iterdir()):
        raise ValueError(f"{partial} exists and was not left by a killed command; choose another output, or remove it.")
    with naming_path(path):
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(mark, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"{partial} is being written by another process; wait for it.") from error
        try:
            for left in partial.iterdir():
                if left != mark:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            name_folder(partial, path)
            (path / _MARK).unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            lock.release()


def name_folder(partial: Path, path: Path) -> None:
    """Wait until all files of a folder are on the disk and then give it its name, in one step."""
    for file in partial.rglob("*"):
        if file.is_file():
            flush(file)
    os.rename(partial, path)
    _flush_folder(path.parent)


@contextmanager
def staged(folder: str | PathLike[str], last: Collection[str] = ()) -> Iterator[Path]:
    """Give a folder inside ``folder`` to write files to; they replace those of the same names when the block ends well.

    Every file is whole at every moment; ``last`` names the files that are replaced after all others, so that they never
    stand for something that is not there yet. Everything is written before anything is replaced.

    Raises:
        OSError: as it came, with the folder's name and what has become of it.
    """
    folder = Path(folder)
    inside = folder / _UNFINISHED
    with naming_path(folder):
        inside.mkdir(parents=True, exist_ok=True)
        try:
            yield inside
            files = sorted(file for file in inside.rglob("*") if file.is_file())
            for file in files:
                flush(file)
            for file in sorted(files, key=lambda file: file.name in last):
                target = folder / file.relative_to(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        finally:
            shutil.rmtree(inside, ignore_errors=True)
        _flush_folder(folder)


def flush(path: str | PathLike[str]) -> None:
    """Wait until the file's content is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:  # some network file systems refuse; the content is there
            pass
        finally:
            os.close(descriptor)


@contextmanager
def naming_path(path: Path, what: str = "it was not written, what was there is unchanged") -> Iterator[None]:
    """Errors of the system say which file they are about: writing to an open one says only what went wrong."""
    try:
        yield
    except SafetensorError as error:  # it puts the system's error into words
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        again = OSError(
            int(number[1]), f"{os.strerror(int(number[1]))}; {what}{_free(path, int(number[1]))}", str(path)
        )
        again.names_path = True  # type: ignore[attr-defined]
        raise again from error
    except OSError as error:
        name = os.fspath(error.filename) if isinstance(error.filename, str | PathLike) else None
        other = name is not None and not name.startswith(str(path)) and Path(name) != path.parent
        if error.errno is None or getattr(error, "names_path", False) or other:
            raise
        again = OSError(error.errno, f"{os.strerror(error.errno)}; {what}{_free(path, error.errno)}", str(path))
        again.names_path = True  # type: ignore[attr-defined]
        raise again from error


def _free(path: Path, number: int) -> str:
    """How much room is left where a full disk, or quota, is the error."""
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    folder = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return "" if folder is None else f"; {shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}"


def path_inside(folder: str | PathLike[str], name: object, named_by: str, also: Collection[Path] = ()) -> Path:
    """Return ``folder / name`` for a name that comes from data, if it does not lead out of the folder.

    Args:
        folder: where the path has to be.
        name: relative to the folder.
        named_by: who names it, for the error.
        also: other folders that a link may lead to.

    Raises:
        ValueError: no text, an absolute path, ``..``, or a link that leads out of the folder.

    >>> path_inside("run", "images/00001_0.jpg", "the file").as_posix()
    'run/images/00001_0.jpg'
    >>> path_inside("run", "../secret", "step_00_harmful.jsonl, line 1,")
    Traceback (most recent call last):
    ValueError: step_00_harmful.jsonl, line 1, names '../secret'; expected a path within run.
    """
    folder = Path(folder)
    parts = re.split(r"[/\\]", name) if isinstance(name, str) else []
    if not isinstance(name, str) or not name or ".." in parts or re.search(r"^[/\\]|^\w:|\0", name):
        raise ValueError(f"{named_by} names {str(name)[:200]!r}; expected a path within {folder}.")
    path = folder / name
    target = path.resolve()
    if not any(target.is_relative_to(home.resolve()) for home in (folder, *also)):
        raise ValueError(f"{named_by} names {name[:200]!r}, a link to {target}; expected a path within {folder}.")
    return path


def plain_name(name: object, what: str) -> str:
    """Return a name that is to be a part of a path, if it is one part of it.

    Raises:
        ValueError: no text, empty, ``.`` or ``..``, or with a separator or a character that no file name can have.
    """
    if not isinstance(name, str) or name.strip() in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError(f"{what} is {str(name)[:200]!r}; expected a name that a folder can have, without / or \\.")
    return name


def unused_path(path: Path) -> Path:
    """The path, or the first of ``name_2``, ``name_3``, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate
