"""The folder of a filter's output: what it was made with, and what a killed run has left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpa_lightning.data.digests import file_digest, folder_digest
from hpa_lightning.data.resuming import described, differences
from hpa_lightning.files import naming_path, write_text
from hpa_lightning.filtering.assessment import HarmFilter
from hpa_lightning.filtering.data_rows import DataRows
from hpa_lightning.filtering.decision import FilterRule
from hpa_lightning.parsing import json_object
from hpa_lightning.values import shown

SETTINGS, FINDINGS = "settings.json", "findings.jsonl"
_LOCK = ".being-written"
_RULE = frozenset(field.name for field in fields(FilterRule))


def settings_of(rows: DataRows, parts: Mapping[str, HarmFilter], rule: FilterRule, chunk: int) -> dict[str, Any]:
    """Return all that decides the result, in words: files by their content, parts by their public attributes."""
    said: dict[str, Any] = {}
    for name, part in parts.items():
        own = described(part)
        if isinstance(part, partial):  # its settings are the arguments that it holds
            own = {"class": described(part.func), "arguments": described(part.args), **described(part.keywords)}
        said[name] = own if isinstance(own, dict) else {"class": own}
        for key, value in vars(part).items() if hasattr(part, "__dict__") else ():
            if isinstance(value, str) and not key.startswith("_") and os.path.isdir(value):  # Path: no long texts
                said[name][key] = f"{value}, {folder_digest(value)}"
    settings = {
        "input": f"{rows.path.name}, {file_digest(rows.path)}",
        "image_folder": str(rows.image_folder.resolve()),
        "parts": said,
        **asdict(rule),
        "chunk": chunk,
    }
    return dict(json.loads(json.dumps(settings)))  # tuples are lists in a file


def is_finished(output: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether the output is there, made with these settings.

    Raises:
        ValueError: something else is there, or an output of other settings.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / SETTINGS).is_file() or not (output / FINDINGS).is_file():
        raise ValueError(f"{output} exists and is not the output of a filter; choose another one, or remove it.")
    _refuse_changes(output, settings, "was made")
    (output / _LOCK).unlink(missing_ok=True)  # of a run that was killed between its last two steps
    return True


def refuse_input(source: Path, output: Path) -> None:
    """Check that the output can be made beside others, and that nothing is written over the input.

    Raises:
        ValueError: an output without a name of its own (``.``, ``..``), or the input is in it.
    """
    if output.name in ("", ".."):
        raise ValueError(f"the output is {str(output)!r}; expected the name of a folder to be made.")
    for folder in (output, _partial_of(output)):
        if source.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the input {source} is in {folder}, which is written to; choose another output.")


@contextmanager
def partial_folder(output: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder that an unfinished run continues with, held against other processes.

    Raises:
        ValueError: a folder of something else, of a run with other settings (but for the rule), or of one that runs.
    """
    folder = _partial_of(output)
    if folder.exists() and not (folder / _LOCK).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and was not left by a filter; choose another output, or remove it.")
    with naming_path(output):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder} is being written by another process; wait for it.") from None
    try:
        if (folder / SETTINGS).is_file():
            _refuse_changes(folder, settings, "was begun", may_change=_RULE)
        write_text(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
        yield folder
        (output / _LOCK).unlink(missing_ok=True)
    finally:
        lock.release()


def _partial_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _refuse_changes(
    folder: Path, settings: Mapping[str, Any], verb: str, may_change: frozenset[str] = frozenset()
) -> None:
    changed = differences(json_object(folder / SETTINGS), settings)
    listed = [f"{name}: {shown(one)} there, {shown(now)} now" for name, (one, now) in changed.items()]
    if changed.keys() - may_change:
        raise ValueError(
            f"{folder} {verb} with other settings ({'; '.join(listed)}). Give the same ones, choose another output, or "
            "remove it."
        )
