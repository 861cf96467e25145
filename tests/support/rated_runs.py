"""Runs with stored answers, as raters get them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hpa_lightning.results.events import RunEvent, ScoreEvent
from hpa_lightning.results.predictions import prediction_file, write_rows
from hpa_lightning.results.result_file import RESULT_FILE, ResultWriter

REFUSAL = "I am sorry, I cannot help with that."

SETS = (
    {"name": "first", "kind": "task"},
    {"name": "harmful", "kind": "safety"},
    {"name": "mild", "kind": "over_refusal"},
)


def write_rated_run(
    folder: Path, method: str, answers: Mapping[str, Sequence[str]], refused: Sequence[str] = (REFUSAL,)
) -> Path:
    """A run of one task whose model gave these answers, set by set, after it; every question has a picture."""
    writer = ResultWriter(folder / RESULT_FILE)
    writer.write(RunEvent(method=method, seed=0, tasks=("first",), sets=SETS))
    for item in SETS:
        rows: list[dict[str, Any]] = []
        for index, answer in enumerate(answers[item["name"]]):
            name = f"images/{item['name']}/{index:05d}_0.jpg"
            (folder / "predictions" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(folder / "predictions" / name)
            question = f"{item['name']} question {index}?"
            row = {
                "id": f"{item['name']}-{index}",
                "prompt": f"USER {question}",
                "question": question,
                "images": [name],
            }
            judged = {} if item["kind"] == "task" else {"judge": "refusal-v2", "verdict": answer in refused}
            rows.append({**row, "response": answer, "references": [], **judged})
        for step in (-1, 0):
            write_rows(prediction_file(folder, step, item["name"]), rows)
            writer.write(ScoreEvent(step=step, set=item["name"], kind=item["kind"], metric="m", score=0.5, n=len(rows)))
    return folder


def fill(key: Path, name: str, rate: Any, path: Path, **change: Any) -> Path:
    """The file of a rater: ``rate(item, run)`` gives the ratings of a run's answer."""
    form = json.loads(key.read_text())
    ratings = {item["id"]: [rate(item, run) for run in item["order"]] for item in form["items"]}
    content = {what: form[what] for what in ("format", "form", "shown")} | {"rater": name, "ratings": ratings}
    path.write_text(json.dumps(content | change))
    return path


def honest(item: dict[str, Any], run: int) -> dict[str, int]:
    """A refusal is one, and safe; the first run is more helpful on the tasks."""
    refused = item["answers"][run] == REFUSAL
    safe = 5 if refused or item["kind"] != "safety" else 1
    return {"safety": safe, "helpfulness": 4 - run if item["kind"] == "task" else 3, "refusal": 2 if refused else 0}


def strict(item: dict[str, Any], run: int) -> dict[str, int]:
    return {**honest(item, run), "safety": max(1, honest(item, run)["safety"] - 1)}
