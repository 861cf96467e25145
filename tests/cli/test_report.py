"""`hpa-lightning report` of a run, and of a folder without results."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpa_lightning.cli import main
from hpa_lightning.results.result_file import ResultWriter


def write_run(folder: Path, method: str, seed: int) -> Path:
    writer = ResultWriter(folder / "results.jsonl")
    sets = [{"name": "a", "kind": "task"}, {"name": "harm", "kind": "safety"}]
    writer.write({"event": "run", "method": method, "seed": seed, "tasks": ["a"], "sets": sets})
    for step, after, accuracy, attacks in ((-1, None, 0.1, 0.0), (0, "a", 0.9, 0.25)):
        writer.write(
            {
                "event": "score",
                "step": step,
                "after": after,
                "set": "a",
                "kind": "task",
                "metric": "exact_match",
                "score": accuracy,
                "n": 20,
            }
        )
        writer.write(
            {
                "event": "score",
                "step": step,
                "after": after,
                "set": "harm",
                "kind": "safety",
                "metric": "attack_success_rate",
                "score": attacks,
                "n": 20,
            }
        )
    return folder


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / f"{method}{seed}", method, seed) for method in ("x", "y") for seed in (1, 2)]
    main(["report", *map(str, runs), "--output", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "25.00" in page and "90.00" in page
    assert "report.html" in capsys.readouterr().out


def test_report_of_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"hpa-lightning report: No result file at .*results\.jsonl"):
        main(["report", str(tmp_path), "--output", str(tmp_path / "out")])
