"""Which judge scored what: named on the page, and a warning where runs of different judges stand together."""

import json
import warnings
from pathlib import Path

import pytest

from hpa_lightning.report import write_report
from hpa_lightning.report.judges import judges_of
from hpa_lightning.results.run_results import RunResults


def with_judge(run: Path, judge: str | None) -> Path:
    path = run / "results.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "score" and event["kind"] != "task" and judge is not None:
            event["judge"] = judge
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_scores_of_different_judges_are_told_apart(write_run, tmp_path: Path) -> None:
    old, new = with_judge(write_run("old", seed=1), "default"), with_judge(write_run("new", seed=2), "refusal-v2")
    assert set(map(tuple, judges_of(RunResults.from_file(old)).values())) == {("rules-v1",)}
    with pytest.warns(UserWarning, match=r"figstep by refusal-v2, rules-v1;.*hpa-lightning judge RUN"):
        page = write_report([old, new], tmp_path / "page")["html"].read_text()
    assert "<dt>Judge</dt><dd>vlguard-unsafes, figstep, spa-vl, xstest: refusal-v2</dd>" in page
    same = with_judge(write_run("same", seed=3), "rules-v1")
    nameless = [with_judge(write_run(name, seed=seed), None) for name, seed in (("a", 4), ("b", 5))]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The scores shown together")
        write_report([old, same], tmp_path / "alike")
        write_report(nameless, tmp_path / "nameless")
        write_report([nameless[0], old], tmp_path / "earlier")
    with pytest.warns(UserWarning, match="not recorded, refusal-v2"):
        write_report([nameless[0], new], tmp_path / "unknown")
