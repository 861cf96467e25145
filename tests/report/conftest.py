"""Sample runs: result files with the shape of real ones (six tasks, three safety sets, 4 layers of 7 linears)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.study_cells import cell, two_tasks

from hpa_lightning.report.study_report import StudyCell
from hpa_lightning.results.result_file import RESULT_FILE

TASKS = ["AD", "ImageNet", "Flickr30k", "Fin", "ScienceQA", "TextVQA"]

SAFETY = ["vlguard-unsafes", "figstep", "spa-vl"]

LINEARS = [
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
]

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes one run with scores that decay by `forgetting` and an attack success that climbs by `harm` per task."""

    def write(
        name: str, method: str = "HPA", seed: int = 0, forgetting: float = 0.03, harm: float = 0.01, layers: int = 4
    ) -> Path:
        rng = random.Random(f"{method}-{seed}")
        lines: list[dict] = []
        sets = [{"name": task, "kind": "task"} for task in TASKS]
        sets += [{"name": item, "kind": "safety"} for item in SAFETY] + [{"name": "xstest", "kind": "over_refusal"}]
        lines.append(
            {
                "event": "run",
                "method": method,
                "seed": seed,
                "tasks": TASKS,
                "sets": sets,
                "versions": {"python": "3.11", "torch": "2.8", "lightning": "2.6"},
                "command": f"hpa-lightning fit --config {method.lower()}.yaml --seed_everything {seed}",
                "commit": "0123456789abcdef0123456789abcdef01234567",
            }
        )
        lines.append({"event": "safety_calibration", "asked": 12, "refused": 9, "used": 8})

        def score(step: int, item: str, kind: str, metric: str, value: float) -> None:
            lines.append(
                {
                    "event": "score",
                    "step": step,
                    "after": TASKS[step] if step >= 0 else None,
                    "set": item,
                    "kind": kind,
                    "metric": metric,
                    "score": min(max(value, 0.0), 1.0),
                    "n": 500,
                }
            )

        for step in range(-1, len(TASKS)):
            for index, task in enumerate(TASKS):
                learnt = 0.85 - forgetting * (step - index) if index <= step else 0.12
                score(step, task, "task", "exact_match", learnt + rng.uniform(-0.05, 0.05))
            for index, item in enumerate(SAFETY):
                rate = 0.03 + 0.02 * index + harm * (step + 1) * (1 + 0.3 * index)
                score(step, item, "safety", "attack_success_rate", rate + rng.uniform(0, 0.02))
            score(step, "xstest", "over_refusal", "over_refusal_rate", 0.2 - 0.02 * (step + 1))
            if step < 0:
                continue
            for phase, seconds in (("train", 600.0), ("calibrate", 30.0), ("fuse", 6.0), ("evaluate", 120.0)):
                lines.append({"event": "time", "step": step, "phase": phase, "seconds": seconds})
            for layer in range(1, layers + 1):
                percent = 15 - layer / layers * 10
                for linear in LINEARS:
                    columns = 2752 if "down" in linear else 1024
                    focused = math.floor(2 * percent * columns / 100 + 0.5)
                    lines.append(
                        {
                            "event": "retention",
                            "step": step,
                            "task": TASKS[step],
                            "layer": layer,
                            "module": f"model.language_model.layers.{layer - 1}.{linear}",
                            "columns": columns,
                            "retained": math.floor(percent * columns / 100 + 0.5),
                            "safety_focused": focused,
                            "task_focused": focused,
                            "shared": int(focused * rng.uniform(0.45, 0.85)),
                            "alpha": rng.uniform(0.4, 0.8),
                            "projection_scale": rng.gauss(0, 1e-3),
                        }
                    )
        # Written at once: the writer waits for the disk at every line, which adds up over the sample runs.
        folder = tmp_path / name
        folder.mkdir()
        (folder / RESULT_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


@pytest.fixture(scope="module")
def study() -> list[StudyCell]:
    """A reference and two methods over three seeds; of `hpa` the first seed is missing, `odd` has one of its own."""
    ref = [two_tasks(1.0, 0.8, k, a) for k, a in ((0.5, 0.7), (0.4, 0.8), (0.3, 0.75))]
    ewc = [two_tasks(0.9, 0.8, k, a) for k, a in ((0.54, 0.6), (0.46, 0.7), (0.32, 0.65))]
    hpa = [two_tasks(0.8, 0.7, 0.7, a) for a in (0.2, 0.3)]
    cells = [cell("ref", seed, run) for seed, run in zip((1, 2, 3), ref, strict=True)]
    cells += [cell("ewc", seed, run) for seed, run in zip((1, 2, 3), ewc, strict=True)]
    cells += [cell("hpa", seed, run) for seed, run in zip((2, 3), hpa, strict=True)]
    return [*cells, cell("odd", 9, two_tasks(0.2, 0.2, 0.2, 0.0, refusal=0.5))]
