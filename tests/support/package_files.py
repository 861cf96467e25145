"""Wheels and Debian packages, made for tests; and where the real ones are."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpa_lightning.smol.inputs import INPUTS, Input

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb: not a Debian system")


def wheel_file(path: Path, members: Mapping[str, bytes]) -> Path:
    """A wheel with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def debian_file(path: Path, members: Mapping[str, bytes]) -> Path:
    """A Debian package with these files; names are taken as they are, `..` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    control = {"control": b"Package: p\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: t\n"}
    parts = {"control.tar.xz": _tar(control), "data.tar.xz": _tar(members)}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in {"debian-binary": b"2.0\n", **parts}.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def given_packages() -> Path | None:
    """The folder with the real packages, named by SMOL_PACKAGES; None where there is none."""
    folder = os.environ.get("SMOL_PACKAGES")
    return Path(folder) if folder and Path(folder).is_dir() else None


def real_package(wanted: Input) -> Path | None:
    """A real package of the benchmark, if it is at hand."""
    folder = given_packages()
    return folder if folder is not None and (folder / wanted.file).is_file() else None


def needs_packages(*names: str) -> pytest.MarkDecorator:
    """Skip where a real package is not at hand."""
    missing = [name for name in names if real_package(INPUTS[name]) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"SMOL_PACKAGES names no folder with the packages {', '.join(missing)}"
    )


def _tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def program(folder: Path, name: str, script: str) -> Path:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
