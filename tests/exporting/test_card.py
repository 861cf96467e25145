"""The model card: what it says of a run, and what it must not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpa_lightning.exporting.card import model_card
from hpa_lightning.exporting.source import TunedCheckpoint
from hpa_lightning.results.run_results import RunResults

CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "model": {"class_path": "hpa_lightning.modules.MLLMModule", "init_args": {"model": "/home/somebody/models/llava"}},
    "data": {"init_args": {"tasks": [{"name": "a", "train": "/home/somebody/data/a.json"}], "token": "hf_secret123"}},
    "trainer": {"callbacks": [{"class_path": "x.HarmoniousFusion"}, {"class_path": "x.TaskEvaluation"}]},
}


def results(*steps: int) -> RunResults:
    sets = [{"name": "a", "kind": "task"}, {"name": "harm", "kind": "safety"}]
    lines: list[dict[str, Any]] = [{"event": "run", "method": "hpa", "seed": 3, "tasks": ["a", "b"], "sets": sets}]
    for step in steps:
        for name, kind, score in (("a", "task", 0.5 + 0.1 * step), ("harm", "safety", 0.1 + 0.1 * step)):
            line = {"event": "score", "step": step, "after": None, "set": name, "kind": kind, "metric": "m"}
            lines.append({**line, "score": score, "n": 20})
    return RunResults(lines)


def source(run: RunResults | None) -> TunedCheckpoint:
    return TunedCheckpoint(Path("a.ckpt"), {"state_dict": {}}, None, CONFIG, run)


def test_scores_before_and_after_stand_in_one_table() -> None:
    card = model_card(source(results(-1, 0, 1)), None, "llava", adapter=False, sees_images=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    table = {row[0]: row[1:] for row in rows}
    assert [float(cell) for cell in table["harm"][2:5]] == pytest.approx([0.0, 20.0, 20.0])
    assert [float(cell) for cell in table["a"][2:5]] == pytest.approx([40.0, 60.0, 20.0])
    assert table["harm"][5] == "20" and "HarmoniousFusion" in card


def test_neither_secrets_nor_places_of_this_machine_are_told() -> None:
    card = model_card(source(results(-1, 0)), "/home/somebody/models/llava", "llava", adapter=True, sees_images=True)
    assert "hf_secret123" not in card and "/home" not in card and "somebody" not in card
    assert "a.json" in card and "llava" in card


@pytest.mark.parametrize("run", [None, results()], ids=["no results", "no scores"])
def test_without_a_measurement_nothing_is_claimed(run: RunResults | None) -> None:
    card = model_card(source(run), None, "llava", adapter=False, sees_images=False)
    assert "measure it before use" in card
    assert run is not None or "No safety set was scored" in card


@pytest.mark.parametrize(
    ("base", "adapter", "images", "expected"),
    [
        ("llava-hf/llava-1.5-7b-hf", True, True, ("peft", "image-text-to-text", "llava-hf/llava-1.5-7b-hf")),
        ("/somewhere/llava", False, False, ("transformers", "text-generation", None)),
    ],
)
def test_the_header_is_what_the_hub_reads(base: str, adapter: bool, images: bool, expected: tuple[Any, ...]) -> None:
    card = model_card(source(None), base, "llava", adapter, images)
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["pipeline_tag"], header.get("base_model")) == expected
    assert ("lora" in header["tags"]) == adapter
