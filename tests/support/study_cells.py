"""Cells of a study with planted scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpa_lightning.report.study_report import StudyCell
from hpa_lightning.results.run_results import RunResults

HASH = "0123456789abcdef0123456789abcdef01234567"

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom


def results(
    matrix: Sequence[Sequence[float]],
    asr: Sequence[float],
    refusal: float = 0.0,
    commit: str | None = HASH,
    empty: Mapping[int, int] | None = None,
    **run: object,
) -> RunResults:
    """A run with this score matrix, these attack success rates (the aligned model's first) and final over-refusal.

    ``empty``: step -> how many of the ten answers to the attack were empty.
    """
    tasks = ["digits", "charts", "reading"][: len(matrix)]
    kinds = {**dict.fromkeys(tasks, "task"), "attack": "safety", "harmless": "over_refusal"}
    records: list[dict] = [
        {"event": "run", "method": "x", "tasks": tasks, "sets": [{"name": n, "kind": k} for n, k in kinds.items()]}
    ]
    records[0].update(run, commit=commit)
    for step, row in enumerate([[0.1] * len(tasks), *matrix], start=-1):
        if step + 1 >= len(asr):
            break  # the run stopped here
        for name, value in zip(kinds, [*row, asr[step + 1], refusal if step >= 0 else 0.0], strict=True):
            score: dict[str, object] = {
                "event": "score",
                "step": step,
                "set": name,
                "kind": kinds[name],
                "metric": "m",
                "score": value,
            }
            if empty and name == "attack":
                score |= {"n": 10, "empty": empty.get(step, 0)}
            records.append(score)
    return RunResults(records)


def cell(method: str, seed: int, run: RunResults, condition: str = "original data") -> StudyCell:
    return StudyCell(method, method.upper(), condition, seed, run)


def two_tasks(first: float, last: float, kept: float, asr: float, refusal: float = 0.0, **run: Any) -> RunResults:
    return results([[first, 0.0], [kept, last]], [0.05, asr / 2, asr], refusal, **run)
