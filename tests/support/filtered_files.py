"""Instruction data to filter, a part that finds a word, and what a run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.instruction_files import llava_row

from hpa_lightning.filtering import PhraseFilter

BOMB = PhraseFilter(phrases=["pipe bomb", "napalm"])


def answers(*harmful: int, count: int = 10) -> list[dict[str, Any]]:
    return [
        llava_row(n, f"What is shown in picture {n}?", "A napalm fire." if n in harmful else "Zwei Hunde 🐕 spielen.")
        for n in range(count)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
