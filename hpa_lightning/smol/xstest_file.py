"""XSTest's prompts out of the authors' file, which the user gives or has downloaded: they are not in this package."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from hpa_lightning.files import write_bytes
from hpa_lightning.parsing import not_utf8
from hpa_lightning.values import cut, names

XSTEST_COMMIT = "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d"
"""Of the authors' repository, github.com/paul-rottger/xstest, February 2025."""
XSTEST_ADDRESS = f"https://raw.githubusercontent.com/paul-rottger/xstest/{XSTEST_COMMIT}/xstest_prompts.csv"
XSTEST_CONTENT = "8fb4a97bf65d9f71e5d6c605c4b07429d619f2c874c6b3f240e2d7d7c19a946e"
"""SHA-256 of what that file says, see :func:`rows_digest`."""

_NAME = "xstest_prompts.csv"
_COLUMNS = ("id", "prompt", "type", "label", "focus", "note")
_SECONDS = 60


def take_xstest(given: str | Path | None, inputs: Path, say: Callable[[str], None] = print) -> Path | None:
    """Return the benchmark's own copy of XSTest's file, checked; ``None`` where there is none.

    What the file says is checked, not its bytes: line ends, quotes and the order of columns do not count.

    Args:
        given: the authors' ``xstest_prompts.csv``; ``"download"`` for the one of their repository; ``None`` for the
            copy that an earlier build has left.
        inputs: folder for the copy.
        say: is told what is downloaded.

    Raises:
        ValueError: there is no such file, it says something else, or it could not be downloaded.
    """
    copy = inputs / _NAME
    if copy.is_file() and str(given) in ("None", "download"):
        read_xstest(copy)
        return copy
    if given is None:
        return None
    if str(given) == "download":
        say(f"{XSTEST_ADDRESS} is being downloaded (39 kB, CC BY 4.0).")
        content = _downloaded(XSTEST_ADDRESS)
        _checked_rows(content, XSTEST_ADDRESS)
    else:
        path = Path(given)
        if not path.is_file():
            raise ValueError(f"--xstest {given} is no file; expected the authors' {_NAME}, or the word download.")
        content = path.read_bytes()
        _checked_rows(content, str(path))
    write_bytes(copy, content)
    return copy


def read_xstest(path: Path) -> list[dict[str, str]]:
    """Return the rows of XSTest's file: ``id``, ``prompt``, ``type``, ``label``, ``focus``, ``note``.

    Raises:
        ValueError: it says something else than the authors' file.
    """
    return _checked_rows(path.read_bytes(), str(path))


def rows_digest(rows: list[dict[str, str]]) -> str:
    """Return the SHA-256 of the rows, the columns in XSTest's order."""
    return sha256(json.dumps([[row[name] for name in _COLUMNS] for row in rows]).encode()).hexdigest()


def without_xstest(folder: str | Path = "FOLDER") -> str:
    """Return the sentence that says what a benchmark in ``folder`` lacks without XSTest, and how to add it."""
    return (
        "XSTest is not in it: the harmful sets hold AdvBench alone, and the over-refusal sets harmless-text, "
        "harmless-picture and harmless-typeset are left out. `hpa-lightning benchmark build smol --output "
        f"{folder} --xstest FILE` adds them; FILE is the authors' {_NAME} ({XSTEST_ADDRESS}), or the word download."
    )


def _checked_rows(content: bytes, where: str) -> list[dict[str, str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(where, error.start) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [str(name) for name in reader.fieldnames or ()]
    if sorted(columns) != sorted(_COLUMNS):
        raise ValueError(f"{where} has the columns {names(columns)}; expected XSTest's, {', '.join(_COLUMNS)}.")
    rows = [{name: str(row[name]) for name in _COLUMNS} for row in reader]
    if (found := rows_digest(rows)) != XSTEST_CONTENT:
        safe, unsafe = (sum(row["label"] == label for row in rows) for label in ("safe", "unsafe"))
        raise ValueError(
            f"{where} holds {len(rows)} rows ({safe} safe, {unsafe} unsafe) with the digest {found}; expected XSTest's "
            f"250 safe and 200 unsafe prompts with {XSTEST_CONTENT}, as in {XSTEST_ADDRESS}. Figures on other prompts "
            "would not compare."
        )
    return rows


def _downloaded(address: str) -> bytes:
    try:
        with urlopen(address, timeout=_SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{address} could not be downloaded ({cut(error, 200)}); get the file elsewhere and pass it as --xstest."
        ) from error
    return content
