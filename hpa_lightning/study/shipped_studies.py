"""Study files of the repository that the package brings along: where they lie in a checkout and in an installation."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from sysconfig import get_path

_REPOSITORY = Path(__file__).parents[2]
_SHARE = ("share", "hpa_lightning")


def shipped_study(name: str) -> Path:
    """Return the path of ``studies/NAME.yaml``: in the repository, or among the data of the installed package.

    Raises:
        ValueError: it is in neither place.
    """
    path = _REPOSITORY / "studies" / f"{name}.yaml"
    if path.is_file():
        return path
    for found in _installed(f"{name}.yaml"):
        if found.is_file():
            return found
    raise ValueError(
        f"the study {name}.yaml is neither in {path.parent} nor among the files of the installed package; reinstall "
        "hpa-lightning, or run from a checkout of its repository."
    )


def _installed(name: str) -> Iterator[Path]:
    """Where installers put a data file of the package: where its record says, or below the folder it was told."""
    try:
        package = distribution("hpa-lightning")
    except PackageNotFoundError:
        return
    for file in package.files or ():
        if file.parts[-3:] == (*_SHARE, name):
            yield Path(str(file.locate())).resolve()
    yield Path(str(package.locate_file(""))).joinpath(*_SHARE, name)
    yield Path(get_path("data")).joinpath(*_SHARE, name)
