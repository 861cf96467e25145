"""A study file with plain methods and a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "title": "A study",
    "base": {
        "seed_everything": "${seed}",
        "data": {"init_args": {"seed": "${seed}", "steps": 3}},
        "trainer": {"callbacks": [{"class_path": "Base", "init_args": {"method": "${title}"}}], "logger": "${folder}"},
    },
    "conditions": {"clean": None, "dirty": {"data": {"init_args": {"ratio": 0.1}}}},
    "methods": {
        "plain": {"title": "Plain"},
        "sweep": {
            "title": "Sweep at ${p} %",
            "grid": {"p": [2, 5.5]},
            "callbacks": [{"class_path": "Method", "init_args": {"p": "${p}", "note": "p is ${p}"}}],
            "config": {"data": {"init_args": {"steps": 7}}},
        },
    },
    "groups": {
        "first": {"title": "First", "methods": ["plain", "sweep"], "seeds": [1, 2], "reference": "plain"},
        "second": {
            "title": "Second",
            "methods": ["sweep[p=2]"],
            "conditions": ["clean"],
            "seeds": [2, 3],
            "x": {"setting": "p"},
        },
    },
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path
