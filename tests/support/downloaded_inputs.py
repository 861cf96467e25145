"""The packages that the benchmark `smol` is made of, where they were downloaded: HPA_SMOL_WHEELS names the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpa_lightning.smol.inputs import INPUTS, find_input


def unpacked(name: str) -> Path:
    """The unpacked package; a test that needs it is skipped where nobody has downloaded it."""
    wheels = os.environ.get("HPA_SMOL_WHEELS")
    if not wheels or not (Path(wheels) / INPUTS[name].file).is_file():
        pytest.skip(f"HPA_SMOL_WHEELS names no folder with {INPUTS[name].file}")
    return find_input(name, Path(wheels) / "unpacked", Path(wheels))
