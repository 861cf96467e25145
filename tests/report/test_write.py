"""The files of a report."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hpa_lightning.report import write_report
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.results.run_results import RunResults


def test_report_of_one_run(write_run, tmp_path: Path) -> None:
    paths = write_report([write_run("one")], tmp_path / "report")
    assert set(paths) == {
        *("html", "summary_csv", "summary_md", "summary_json", "matrix_csv"),
        *("trade-off", "hpa-matrix", "hpa-curves", "hpa-retention"),
    }
    run = RunResults.from_file(tmp_path / "one")
    (row,) = csv.DictReader(paths["summary_csv"].open())
    assert float(row["AP %"]) == pytest.approx(100 * run.summary()["AP"], abs=0.005)
    summary = json.loads(paths["summary_json"].read_text())
    assert summary["runs"][0]["MASR %"] == pytest.approx(100 * run.summary()["MASR"])
    assert paths["summary_md"].read_text().startswith("| Method |")
    for name in ("trade-off", "hpa-matrix", "hpa-curves", "hpa-retention"):
        with Image.open(paths[name]) as image:
            assert min(image.size) > 400 and len(image.convert("RGB").getcolors(maxcolors=10**6)) > 50


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path)
    with pytest.raises(ValueError, match="wrap it in a list"):
        write_report(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError):
        write_report([tmp_path], tmp_path / "report")
    ResultWriter(tmp_path / "results.jsonl").write({"event": "run", "method": "x", "tasks": ["a"], "sets": []})
    with pytest.raises(ValueError, match="no score yet"):
        write_report([tmp_path], tmp_path / "report")


def test_a_run_counts_once(write_run: Callable[[str], Path], tmp_path: Path) -> None:
    """Given twice, or copied, it would be two seeds without any spread."""
    run = write_run("run")
    shutil.copytree(run, tmp_path / "copy")
    for other in (run, tmp_path / "copy", run / "results.jsonl"):
        with pytest.raises(ValueError, match="hold the same run, which would count as two"):
            write_report([run, other], tmp_path / "report", unfinished=True)
    assert not (tmp_path / "report").exists()
