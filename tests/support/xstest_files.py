"""XSTest's file: the authors' one where it is at hand, and a stand-in that the benchmark takes for it."""

import csv
import os
from pathlib import Path

import pytest
from support.safety_files import XSTEST_ROWS, write_xstest

from hpa_lightning.smol import xstest_file


def published_xstest() -> Path | None:
    """The authors' file: named by XSTEST_PROMPTS, or in ``shared/data`` beside the repository."""
    named = os.environ.get("XSTEST_PROMPTS")
    place = Path(named) if named else Path(__file__).parents[3] / "shared" / "data" / "xstest_prompts.csv"
    return place if place.is_file() else None


needs_xstest = pytest.mark.skipif(
    published_xstest() is None, reason="XSTEST_PROMPTS names no file, and there is none in ../shared/data"
)


def stand_in_xstest(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file of three prompts with XSTest's columns, which counts as the authors' from here on."""
    write_xstest(path)
    columns = ("id", "prompt", "type", "label", "focus", "note")
    rows = [dict(zip(columns, row, strict=True)) for row in XSTEST_ROWS]
    monkeypatch.setattr(xstest_file, "XSTEST_CONTENT", xstest_file.rows_digest(rows))
    return path


def rewritten(path: Path, target: Path, **options: str) -> Path:
    """The same rows in another form of CSV; ``columns`` gives their order, by their first letters."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = sorted(rows[0], key=lambda name: options.pop("columns", "iptlfn").index(name[0]))
    with target.open("w", encoding=options.pop("encoding", "utf-8"), newline="") as file:
        writer = csv.DictWriter(file, columns, **options)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)
    return target
