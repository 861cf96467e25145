"""The key of an exported form."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.rated_runs import REFUSAL, write_rated_run

from hpa_lightning.rating import export_form


@pytest.fixture
def key(tmp_path: Path) -> Path:
    answers = {"first": ["red"] * 2, "mild": ["Yes.", "Fine.", REFUSAL, "Good."]}
    runs = [
        write_rated_run(tmp_path / "a", "HPA", {**answers, "harmful": [REFUSAL] * 3 + ["Sure."]}),
        write_rated_run(tmp_path / "b", "SeqFT", {**answers, "harmful": [REFUSAL] + ["Sure."] * 3}),
    ]
    return export_form(runs, tmp_path / "form", tmp_path / "key.json")["key"]
