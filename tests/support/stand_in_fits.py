"""A study whose cells are run by a stand-in."""

from __future__ import annotations

from pathlib import Path

import yaml

from hpa_lightning.study import Cell, Store, read_study

# Stands in for `hpa-lightning fit`: writes a result file, or fails, or waits, as the configuration says.
SCRIPT = """
import os, sys, time, yaml
from pathlib import Path
from hpa_lightning.results.result_file import ResultWriter
config = yaml.safe_load(Path(sys.argv[1]).read_text())
print(os.environ.get("HPA_LIGHTNING_IMPORTS", ""), end="", flush=True)
folder = Path(config["folder"])
(folder / "starts").open("a").write("x")
if config["act"] == "fail":
    sys.exit("no such data")
if config["act"] == "late" and len((folder / "starts").read_text()) == 1:
    sys.exit(f"hpa-lightning fit: another process fits into {folder}; two runs in one folder would mix their results.")
if config["act"] == "wait":
    time.sleep(120)
writer = ResultWriter(folder / "results.jsonl")
writer.write({"event": "run", "method": config["title"], "seed": config["seed"], "tasks": ["a"],
              "sets": [{"name": "a", "kind": "task"}], "commit": "c0ffee", "command": f"fit --config {sys.argv[1]}"})
if config["act"] == "half":
    sys.exit(0)
score = {"event": "score", "step": 0, "after": "a", "set": "a", "kind": "task", "metric": "exact_match"}
writer.write({**score, "score": config["seed"] / 10, "n": 5})
writer.write({"event": "retention", "step": 0, "layer": 1, "module": "m", "columns": 2, "retained": 1})
"""


def study_file(folder: Path, acts: dict[str, str], seeds: list[int]) -> Path:
    study = {
        "base": {"folder": "${folder}", "title": "${title}", "seed": "${seed}", "act": "run"},
        "methods": {name: {"title": name, "config": {"act": act}} for name, act in acts.items()},
        "groups": {"all": {"title": "All", "methods": list(acts), "seeds": seeds}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def cells_of(folder: Path, acts: dict[str, str], seeds: list[int]) -> list[Cell]:
    return read_study(study_file(folder, acts, seeds)).cells()


def starts(store: Store, cell: Cell) -> int:
    path = store.folder(cell) / "starts"
    return len(path.read_text()) if path.exists() else 0
