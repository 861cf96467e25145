"""What the pages' tables say of methods is what the archived runs say, cell by cell.

Worked out here from the runs' scores, not by the package's report; scipy gives Student's t.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?")


class Run:
    """The scores of one archived run, percent; those at its end, or before its first task."""

    def __init__(self, events: Iterable[dict[str, Any]], untuned: bool = False) -> None:
        self.tasks: list[str] = []
        self.scores: dict[int, dict[str, float]] = {}
        self.likelihoods: dict[int, dict[str, float]] = {}
        self.kinds: dict[str, str] = {}
        self.minutes: dict[str, float] = {}  # phase -> its sum
        self.memory = math.nan
        for event in events:
            if event["event"] == "time":
                self.minutes[event["phase"]] = self.minutes.get(event["phase"], 0.0) + event["seconds"] / 60
            if event["event"] == "end":
                self.memory = event.get("peak_memory", math.nan) / 1e9
            if event["event"] == "run":
                self.tasks = event["tasks"]
            if event["event"] == "score":
                step, name = event["step"], event["set"]
                self.kinds[name] = event["kind"]
                self.scores.setdefault(step, {})[name] = 100 * event["score"]
                likelihood = event.get("figures", {}).get("by_likelihood", math.nan)
                self.likelihoods.setdefault(step, {})[name] = 100 * likelihood
        self.step = -1 if untuned else len(self.tasks) - 1

    def mean(self, kind: str, step: int | None = None) -> float:
        scores = self.scores[self.step if step is None else step]
        return float(np.mean([score for name, score in scores.items() if self.kinds[name] == kind]))

    def at_end(self, name: str) -> float:
        return self.scores[self.step][name]

    def learnt(self) -> float:
        return float(np.mean([self.scores[step][task] for step, task in enumerate(self.tasks)]))

    def performance(self) -> float:
        return float(np.mean([self.at_end(task) for task in self.tasks]))

    def backward_transfer(self) -> float:
        earlier = list(enumerate(self.tasks))[:-1]
        return float(np.mean([self.at_end(task) - self.scores[step][task] for step, task in earlier]))


Figures = Callable[[Sequence[Run]], list[float]]


@cache
def archive(name: str) -> dict[str, list[dict[str, Any]]]:
    """Key of a run -> its events."""
    lines = (ROOT / "docs/results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {cell["key"]: cell["events"] for cell in map(json.loads, lines)}


class HalfWidth(float):
    """Of a 95 % interval: a cell may leave it out."""


def estimate(figure: Callable[[Run], float]) -> Figures:
    """The mean over runs; of several, with the half width of its 95 % interval."""

    def found(runs: Sequence[Run]) -> list[float]:
        values = [figure(run) for run in runs]
        if len(values) == 1:
            return values
        spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return [float(np.mean(values)), HalfWidth(stats.t.ppf(0.975, len(values) - 1) * spread)]

    return found


def of_each(figure: Callable[[Run], float]) -> Figures:
    return lambda runs: [figure(run) for run in runs]


def joined(*figures: Figures) -> Figures:
    return lambda runs: [value for figure in figures for value in figure(runs)]


def mean(figure: Callable[[Run], float]) -> Figures:
    return lambda runs: [float(np.mean([figure(run) for run in runs]))]


def attack(run: Run) -> float:
    return run.mean("safety")


def refused(run: Run) -> float:
    return run.mean("over_refusal")


def beside_training(run: Run) -> float:
    return sum(run.minutes.get(phase, 0.0) for phase in ("prepare", "calibrate", "remember", "fuse", "gate"))


def set_score(name: str) -> Callable[[Run], float]:
    return lambda run: run.at_end(name)


TEXT, PICTURE = "harmful-text", "harmful-picture"

SECOND_JUDGE = joined(
    mean(lambda run: run.likelihoods[run.step][TEXT]), mean(lambda run: run.likelihoods[run.step][PICTURE])
)

ATTACKS = joined(of_each(attack), of_each(set_score(TEXT)), of_each(set_score(PICTURE)))

NANO_SETS = joined(*(mean(set_score(f"harmful-{name}")) for name in ("text", "image", "typeset")))

COLUMNS: dict[str, Figures] = {
    "learnt": estimate(Run.learnt),
    "AP": estimate(Run.performance),
    "BWT": estimate(Run.backward_transfer),
    "attack success": estimate(attack),
    "MASR": estimate(attack),
    "DASR": estimate(lambda run: attack(run) - run.mean("safety", -1)),
    "right after each task": mean(Run.learnt),
    "MASR (text / image / typeset)": joined(estimate(attack), NANO_SETS),
    "text / image / typeset": NANO_SETS,
    "MASR, and of each seed": joined(estimate(attack), of_each(attack)),
    "second judge: words / beside a picture": SECOND_JUDGE,
    "second judge, means: words / beside a picture": SECOND_JUDGE,
    "over-refusal": estimate(refused),
    "AP - MASR - over-refusal": estimate(lambda run: run.performance() - attack(run) - refused(run)),
    "MASR (words alone / beside a picture)": ATTACKS,
    "MASR (words / beside a picture)": ATTACKS,
    "MASR after each task": lambda runs: [run.mean("safety", step) for run in runs for step in range(len(run.tasks))],
    "attack success in words": of_each(set_score(TEXT)),
    "beside a picture": of_each(set_score(PICTURE)),
    "over-refusal in words": of_each(set_score("harmless-text")),
    "over-refusal beside a picture": of_each(set_score("harmless-picture")),
    "training, min": of_each(lambda run: run.minutes["train"]),
    "the method beside it, min": of_each(beside_training),
    "most memory, GB": of_each(lambda run: run.memory),
    "CIDEr": of_each(lambda run: run.at_end("adaptation") / 100),
}


@dataclass(frozen=True)
class Row:
    """A row's runs: their key without the seed; ``untuned``, the model that they start from."""

    run: str
    seeds: tuple[int, ...]
    untuned: bool = False

    def figures(self, heading: str, events: dict[str, list[dict[str, Any]]]) -> list[float]:
        """What stands under a heading."""
        if self.untuned and heading in ("learnt", "AP", "BWT"):
            return []
        if self.untuned and heading == "MASR, and of each seed":
            heading = "MASR"
        run = self.run
        if heading == "MASR, 0.1 % harmful samples":
            run, heading = run.replace("clean/", "three-tasks-0.1/"), "MASR"
        runs = [Run(events[f"{run}/seed_{seed}"], self.untuned) for seed in self.seeds]
        steps = {"": -1, **{task: step for step, task in enumerate(runs[0].tasks)}}
        if heading in steps:
            return mean(lambda run: run.mean("safety", steps[heading]))(runs)
        return COLUMNS[heading](runs)


def rows(condition: str, seeds: tuple[int, ...], *runs: str) -> list[Row]:
    return [Row(f"{condition}/{run}", seeds) for run in runs]


THREE = (101, 102, 103)

HUSH, ALL_INPUTS = "hush-shares-energy-0.95-memory-0.7", "null-space-energy-0.95"

REGRESSION = "regression-safety-0.1-memory-0.1"

REFUSALS = "null-space-refusals-energy-0.95-memory-0.7"

CHOSEN = rows(
    "three-tasks-0",
    THREE,
    *("sequential", "hpa-paper", "hpa-in-p-60.0", HUSH, REGRESSION, ALL_INPUTS),
    *("model-tailor-keep-10.0", "safe-delta-budget-10.0-protected-0.0", "linear-aligned-share-0.1"),
    *("osf-rank-0.9-rate-5e-05", "sppft-first-6-last-14", "olora-weight-2.0"),
    *("experience-replay-size-128-share-0.4", "safety-replay-size-128-share-0.02"),
)

ALIGNED = Row("three-tasks-0/sequential", (101,), untuned=True)

FIVE = (101, 102, 103, 104, 105)

NANO_SHARE, NANO_BUDGET = "null-space-energy-0.7", "hush-stream-stream_budget-0.085"

NANO_HPA = "hpa-post-p_min-5.0-p_max-15.0"

DEMO = ("sequential", "hpa-in-p-72.0", "hpa-post-p_min-7.0-p_max-18.0")

# Page, how the header of its table begins, archive, the runs of its rows in their order.
TABLES: list[tuple[str, str, str, list[Row]]] = [
    ("README.md", "| method | AP | BWT | MASR, and of each seed |", "smol", [ALIGNED, *CHOSEN]),
    ("docs/smol_results.md", "| | learnt | AP | BWT | MASR, and of each seed |", "smol", [ALIGNED, *CHOSEN]),
    (
        "docs/smol_results.md",
        "| | learnt | AP | BWT | MASR (words alone / beside a picture) | MASR after each task |",
        "smol",
        [
            *rows("three-tasks-0", (101,), "sequential", REFUSALS),
            *rows("three-tasks-0", (102,), REFUSALS),
            *rows("three-tasks-0", (101,), "hush-stream_budget-0.085"),
            *rows("three-tasks-0", (101,), "olora-weight-0.1", "safe-delta-budget-40.0-protected-0.0"),
            *rows("three-tasks-0", (101,), "model-tailor-keep-30.0", "safety-replay-size-128-share-0.1"),
        ],
    ),
    (
        "docs/smol_results.md",
        "| six tasks | learnt | AP | BWT | MASR (words alone / beside a picture) | MASR after each task |",
        "smol",
        rows("six-tasks", (101,), "sequential", HUSH),
    ),
    (
        "docs/smol_results.md",
        "| | learnt | AP | BWT | MASR | over-refusal | AP - MASR - over-refusal |",
        "smol",
        [
            *rows("settings", (100,), ALL_INPUTS, HUSH, "sequential"),
            *rows("search", (100,), REGRESSION, "regression-safety-0.3-memory-0.1"),
            *rows("search", (100,), "experience-replay-size-128-share-0.4", "experience-replay-size-128-share-0.1"),
            *rows("search", (100,), "hpa-in-p-60.0", "hpa-in-p-20.0"),
            *rows("search", (100,), "hpa-paper", "hpa-post-p_min-15.0-p_max-25.0"),
            *rows("search", (100,), "model-tailor-keep-10.0", "model-tailor-keep-30.0"),
            *rows("search", (100,), "linear-aligned-share-0.1", "linear-aligned-share-0.3"),
            *rows("search", (100,), "safe-delta-budget-10.0-protected-0.0", "safe-delta-budget-1.0-protected-0.0"),
            *rows("search", (100,), "olora-weight-2.0", "olora-weight-0.1"),
            *rows("search", (100,), "sppft-first-6-last-14", "sppft-first-6-last-20"),
            *rows("search", (100,), "safety-replay-size-128-share-0.02", "safety-replay-size-128-share-0.1"),
            *rows("search", (100,), "osf-rank-0.9-rate-5e-05"),
            *rows("search", (100,), "osf-rank-0.9-rate-0.0002", "osf-rank-0.5-rate-0.0002"),
        ],
    ),
    (
        "docs/smol_results.md",
        "| | learnt | AP | BWT | MASR (words / beside a picture) |",
        "smol",
        rows("three-tasks-0", (101,), "hpa-paper", "post-unnormalised", "post-reverse-alpha"),
    ),
    (
        "docs/smol_results.md",
        "| three seeds | learnt | AP | BWT | MASR, and of each seed |",
        "smol",
        rows("three-tasks-0", THREE, "hpa-paper", "post-multiply", "post-outputs"),
    ),
    (
        "docs/smol_results.md",
        "| share, and method | learnt |",
        "smol",
        [
            *rows("three-tasks-0", (101,), "sequential", "hpa-paper", HUSH),
            *rows("three-tasks-0.1", (101,), "sequential", "hpa-paper", HUSH),
            *rows("three-tasks-1", (101,), "sequential", "hpa-paper", HUSH),
        ],
    ),
    (
        "docs/smol_results.md",
        "| | training, min |",
        "smol",
        [Row(row.run, (103,)) for row in CHOSEN],
    ),
    (
        "docs/smol_results.md",
        "| | attack success in words | beside a picture |",
        "smol_adaptation",
        [
            Row("efficientnet/tuning", (101,), untuned=True),
            *rows("efficientnet", (101, 102), "tuning", "hush"),
            *rows("efficientnet", (101,), "hpa-paper", "aligned-merging-share-0.5", "multi-task-share-0.1"),
            *rows("efficientnet", (101,), "sppft-first-1-last-10", "sequential-sft", "merging-share-0.5"),
        ],
    ),
    (
        "docs/methods/null_space_projection.md",
        "| | learnt | AP | BWT | attack success | over-refusal |",
        "smol",
        [
            ALIGNED,
            *rows(
                "settings",
                (100,),
                "sequential",
                ALL_INPUTS,
                REFUSALS,
                "null-space-refusals-energy-0.95-memory-0.95",
                HUSH,
            ),
        ],
    ),
    (
        "README.md",
        "| method | AP | BWT | MASR | MASR, 0.1 % harmful samples |",
        "nano",
        rows("clean", FIVE, "sequential", NANO_HPA, REGRESSION, NANO_SHARE),
    ),
    ("docs/nano.md", "| method | AP | BWT | MASR | DASR |", "nano", rows("clean", FIVE, *DEMO)),
    ("docs/nano.md", "| MASR after | driving |", "nano", rows("clean", FIVE, *DEMO)),
    (
        "docs/methods/hush.md",
        "| | learnt | AP | BWT | MASR (text / image / typeset) |",
        "nano",
        rows("clean", FIVE, HUSH, REFUSALS, NANO_SHARE, NANO_BUDGET, "sequential"),
    ),
    (
        "docs/methods/hush.md",
        "| | | driving |",
        "nano",
        rows("clean", FIVE, HUSH, REFUSALS, NANO_SHARE, NANO_BUDGET, "sequential"),
    ),
    (
        "docs/methods/hush.md",
        "| | AP | BWT | MASR | over-refusal |",
        "nano",
        [
            *rows("clean", FIVE, NANO_SHARE, "null-space-sketch-rank-192"),
            *rows("clean", FIVE, REGRESSION, "regression-sketch-rank-384"),
        ],
    ),
    (
        "docs/methods/null_space_projection.md",
        "| | learnt | AP | BWT | MASR | over-refusal |",
        "nano",
        [
            *rows("three-tasks", (0,), "sequential", NANO_SHARE, "null-space-large-energy-0.9", REFUSALS, HUSH),
            *rows("three-tasks", (0,), "null-space-refusals-energy-0.95-memory-0.5"),
            *rows("three-tasks", (0,), "null-space-refusals-energy-0.9-memory-0.7"),
            *rows("three-tasks", (0,), "hush-shares-energy-0.98-memory-0.7", "hush-shares-energy-0.98-memory-0.8"),
        ],
    ),
    (
        "docs/methods/null_space_projection.md",
        "| | learnt | AP | BWT | MASR (text / image / typeset) |",
        "nano",
        rows("clean", FIVE, NANO_BUDGET, NANO_SHARE, "sequential"),
    ),
    (
        "docs/methods/null_space_projection.md",
        "| `share` | learnt |",
        "nano",
        [
            *rows("three-tasks", (0, 1), NANO_SHARE, "null-space-share-share-output-budget-0.05"),
            *rows("three-tasks", (0, 1), "null-space-share-share-nearest-budget-0.05"),
            *rows("three-tasks", (0, 1), "null-space-share-share-refusals-budget-0.05"),
        ],
    ),
]


def table(page: str, header: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the page's table whose header begins so; of several, of the last."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith(header))
    found = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    headings, _, *body = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found]
    for column, heading in enumerate(headings):
        if heading == "beside a picture" and headings[column - 1].startswith("over-refusal"):
            headings[column] = "over-refusal beside a picture"
    return headings, body


def says(cell: str, expected: Sequence[float]) -> bool:
    """Whether the cell's numbers are these, rounded as it rounds them (a half up, down or to even)."""
    said = NUMBER.findall(cell)
    if "±" not in cell:
        expected = [value for value in expected if not isinstance(value, HalfWidth)]
    return len(said) == len(expected) and all(
        abs(float(one) - value) <= 0.5 * 10.0 ** -len(one.partition(".")[2]) + 1e-5
        for one, value in zip(said, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("page", "header", "name", "expected"), TABLES, ids=[f"{page}-{number}" for number, (page, *_) in enumerate(TABLES)]
)
def test_the_table_says_what_the_archived_runs_say(page: str, header: str, name: str, expected: list[Row]) -> None:
    events = archive(name)
    headings, body = table(page, header)
    assert len(body) == len(expected), [row[0] for row in body]
    mistakes = [
        (row[0], heading, cell, figures)
        for row, runs in zip(body, expected, strict=True)
        for heading, cell in list(zip(headings, row, strict=True))[1:]
        if not says(cell.replace("**", ""), figures := runs.figures(heading, events))
    ]
    assert not mistakes


@pytest.mark.parametrize(("place", "tower"), enumerate(["efficientnet", "dino", "gemma"]))
def test_the_table_of_towers_says_what_the_archived_runs_say(place: int, tower: str) -> None:
    """Each cell has the model before the adaptation, after it, and after it with HUSH."""
    _, body = table("docs/smol_results.md", "| | attack success in words: before, after, with HUSH |")
    events = archive("smol_adaptation")
    runs = [Row(f"{tower}/tuning", (101,), untuned=True), *rows(tower, (101,), "tuning", "hush")]
    sets = ["attack success in words", "beside a picture", "over-refusal in words", "over-refusal beside a picture"]
    expected = [[figure for run in runs for figure in run.figures(heading, events)] for heading in sets]
    assert len(body) == 3 and all(says(*pair) for pair in zip(body[place][1:], expected, strict=True))


def test_the_table_of_the_regime_says_what_the_archived_runs_say() -> None:
    """Each cell has the score on a task right after it, and mean attack success then."""
    headings, body = table("docs/smol_results.md", "| | `clothes` |")
    stream = Run(archive("smol")["settings/sequential/seed_100"])
    alone = [Run(archive("smol")[f"{task}-alone/sequential/seed_100"]) for task in stream.tasks]
    assert [heading.strip("`") for heading in headings[1:]] == stream.tasks and len(body) == 2
    for step, task in enumerate(stream.tasks):
        assert says(body[0][1 + step], [alone[step].at_end(task), attack(alone[step])])
        assert says(body[1][1 + step], [stream.scores[step][task], stream.mean("safety", step)])


def test_the_table_of_processors_says_what_the_archived_runs_say() -> None:
    key = "three-tasks-0/sequential/seed_101"
    found = [archive(name)[key] for name in ("smol", "smol_avx2")]
    headings, body = table("docs/smol_results.md", "| processor | learnt |")
    assert len(body) == 2
    for row, events in zip(body, found, strict=True):
        run = Row("three-tasks-0/sequential", (101,))
        assert all(
            says(cell, run.figures(heading, {key: events}))
            for heading, cell in list(zip(headings, row, strict=True))[1:]
        ), row
    scored = [[event for event in events if event["event"] == "score"] for events in found]
    by_set = [{(event["step"], event["set"]): event for event in events} for events in scored]
    assert by_set[0].keys() == by_set[1].keys()
    for (_, name), one, other in ((place, one, by_set[1][place]) for place, one in by_set[0].items()):
        apart = one["n"] * abs(one["score"] - other["score"])
        if name == "captions":
            assert abs(one["score"] - other["score"]) < 0.0145
        else:
            assert round(apart, 3) <= {60: 2, 40: 1}[one["n"]]


def test_a_wrong_number_and_a_missing_one_are_found() -> None:
    assert says("43.1 ± 16.3 (56, 40)", [43.14, 16.26, 56.25, 40.0]) and says("", [])
    assert not says("43.2 ± 16.3", [43.14, 16.26])
    assert not says("43.1", [43.14, 16.26]) and not says("", [1.0])
    assert says("-9.4 ± 7.7", [-9.38, 7.7]) and not says("9.4 ± 7.7", [-9.38, 7.7])
    assert not says("45.7", [45.6466])
