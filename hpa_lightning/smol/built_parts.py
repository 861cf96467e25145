"""Parts of a built folder: each whole or not at all, made once, made again when what it is made of has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from hpa_lightning.files import whole_folder, write_text
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.smol.package_archives import file_digest

_ABOUT = "part.json"


def build_part(folder: Path, made_of: Mapping[str, Any], fill: Callable[[Path], Mapping[str, int]]) -> dict[str, Any]:
    """Make a part unless it is there, and return what is known of it.

    A process that is killed leaves no part that is not whole; the next one begins this part anew and keeps the others.

    Args:
        folder: of the part.
        made_of: all that decides its content, to be written as JSON.
        fill: writes into the folder that it is given and returns what it holds: name -> number.

    Returns:
        ``counts`` (what ``fill`` returned), ``files`` (SHA-256 of each file that is not a picture) and ``pictures``
        (their number).

    Raises:
        ValueError: the folder is there and was not made by this function.
    """
    key = sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    if folder.exists():
        known = _known(folder)
        if known is None:
            raise ValueError(
                f"{folder} exists and is no part of this benchmark; remove it, or choose another --output."
            )
        if known.get("key") == key and _content(folder) == {name: known.get(name) for name in ("files", "pictures")}:
            return known
        shutil.rmtree(folder)
    with whole_folder(folder) as partial:
        counts = dict(fill(partial))
        known = {"key": key, "counts": counts, **_content(partial)}
        write_text(partial / _ABOUT, json.dumps(known, indent=1) + "\n")
    return known


def _known(folder: Path) -> dict[str, Any] | None:
    path = folder / _ABOUT
    if not path.is_file():
        return None
    content = parse_json(read_text(path), str(path))
    return content if isinstance(content, dict) else None


def _content(folder: Path) -> dict[str, Any]:
    files, pictures = {}, 0
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".jpg"):
            pictures += 1
        elif path.suffix in (".json", ".jsonl") and path.name != _ABOUT:
            files[path.relative_to(folder).as_posix()] = file_digest(path)
    return {"files": files, "pictures": pictures}
