"""The demo's study is the archived one."""

from __future__ import annotations

from pathlib import Path

from hpa_lightning.study import demo_study
from hpa_lightning.study.study_file import read_study


def test_the_demo_runs_what_the_archived_study_ran() -> None:
    """But for what is kept of a run."""

    def calibrated(cell) -> list[dict]:
        return cell.config["trainer"]["callbacks"][3 if "six" in cell.condition else 2 :]

    study = read_study(Path(__file__).parents[2] / "studies" / "nano.yaml")
    archived = {cell.method: cell for cell in study.cells() if cell.condition == "clean" and cell.seed == 101}
    names = {
        "sequential": "sequential",
        "in-training": "hpa-in[p=72.0]",
        "post-training": "hpa-post[p_min=7.0, p_max=18.0]",
        "null-space": "null-space-sketch[rank=192]",
    }
    for cell in demo_study.demo_study([101], list(names)).cells():
        other = archived[names[cell.method]]
        mine, theirs = calibrated(cell), calibrated(other)
        for callback in theirs:
            callback.get("init_args", {}).pop("memory_weight", None)  # its default
        assert mine == theirs
        assert cell.config["data"] == other.config["data"] and cell.config["model"] == other.config["model"]
