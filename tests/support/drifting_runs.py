"""Runs whose drift tells the loss of safety, by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpa_lightning.results.events import DriftEvent, DriftPromptsEvent, RunEvent, ScoreEvent, WeightDriftEvent
from hpa_lightning.results.run_results import RunResults

TASKS = ("one", "two", "three")


def drifting_run(seed: int, gap: bool = True) -> RunResults:
    """Attack success rises with the drift of block 2 alone; the other blocks and the weights drift at random."""
    generator = np.random.default_rng(seed)
    sets = ({"name": "harm", "kind": "safety"}, *({"name": task, "kind": "task"} for task in TASKS))
    events = [RunEvent(method="m", seed=seed, tasks=TASKS, sets=sets)]
    events.append(DriftPromptsEvent(sets={"harmful": 8}, first=2 if gap else None, last=2 if gap else None))
    score = lambda step, asr: ScoreEvent(  # noqa: E731
        step=step, set="harm", kind="safety", metric="attack_success_rate", score=asr, n=10
    )
    events.append(score(-1, 0.05))
    for step, drift in enumerate(generator.uniform(0.1, 0.9, len(TASKS))):
        at, noise = 10 * (step + 1), generator.uniform(0, 0.5, 4)
        events.append(score(step, 0.05 + drift))
        events += [ScoreEvent(step=step, set=t, kind="task", metric="exact_match", score=0.5) for t in TASKS]
        cosine = (1 - float(noise[0]), 1 - float(drift), 1 - float(noise[1]))
        events.append(DriftEvent(step=step, at=at, phase="train", set="harmful", n=8, cosine=(0.0, 0.0, 0.0)))
        events.append(DriftEvent(step=step, at=at, phase="end", set="harmful", n=8, cosine=cosine))
        weights = WeightDriftEvent(step=step, at=at, phase="end", blocks=(0.1, float(noise[2]), 0.1), modules={})
        events.append(weights)
    return RunResults([event.record() for event in events], Path(f"run{seed}/results.jsonl"))
