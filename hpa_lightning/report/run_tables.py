"""Tables of results: scores in percent."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hpa_lightning.metrics.scoring import broken_not_safe, listed
from hpa_lightning.report.significance import estimate
from hpa_lightning.results.events import GateEvent, ScoreEvent, TestedEvent
from hpa_lightning.results.run_results import KINDS, RunResults
from hpa_lightning.table import MISSING, Cell, Table

#: Columns of the summary: key in `RunResults.summary`, heading, and the factor from the stored value.
SUMMARY_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("AP", "AP %", 100.0),
    ("BWT", "BWT %", 100.0),
    ("MASR", "MASR %", 100.0),
    ("DASR", "DASR %", 100.0),
    ("over_refusal", "Over-refusal %", 100.0),
    ("minutes", "Minutes", 1.0),
)

#: Columns that follow where any run has them.
FURTHER_COLUMNS: tuple[tuple[str, str, float], ...] = (("helpfulness", "Helpfulness %", 100.0),)

#: Columns that follow where any run counted it.
ANSWER_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("empty", "Empty %", 100.0),
    ("cut", "Cut %", 100.0),
    ("no_option", "No option %", 100.0),
)

#: What a further column of a study may not be called, since its tables have one of that name, by any case of letters.
RESERVED_HEADINGS = frozenset(
    heading.removesuffix(" %").casefold()
    for heading in (
        *("Method", "Seeds", "Pairs", "Learnt"),
        *(heading for _, heading, _ in (*SUMMARY_COLUMNS, *FURTHER_COLUMNS, *ANSWER_COLUMNS)),
    )
)


def check_heading(heading: str, where: str = "") -> None:
    """Check that a further column of a study's tables is not called as one that they have.

    Raises:
        ValueError: it is; the message begins with ``where``.
    """
    if heading.strip().removesuffix("%").strip().casefold() in RESERVED_HEADINGS:
        raise ValueError(f"{where}the tables have a column {heading!r} already; give this one another heading.")


def seed_label(seed: int | None) -> str:
    """The seed, or a dash if none was set (Lightning marks that with -1)."""
    return MISSING if seed is None or seed < 0 else str(seed)


def run_labels(runs: Sequence[RunResults]) -> list[str]:
    """A distinct name for every run: the method, if that is not enough the seed, then the folder."""
    labels = [run.method for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.method}, seed {seed_label(run.seed)}" for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({run.path.parent.name})" for label, run in zip(labels, runs, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} #{number}" for number, label in enumerate(labels, start=1)]
    return labels


@dataclass(frozen=True)
class _Stream:
    """What runs have to share so that a mean over them is one: the method, its tasks, the sets and their metrics."""

    method: str
    tasks: tuple[str, ...]
    sets: frozenset[tuple[str, str]]  # name and metric

    def label(self, others: Collection[_Stream]) -> str:
        """The method, with what tells this stream from its other ones."""
        alike = [other for other in others if other.method == self.method]
        parts = [self.method]
        if len(streams := {other.tasks for other in alike}) > 1:
            by_number = len({len(tasks) for tasks in streams}) == len(streams)
            number = f"{len(self.tasks)} task{'s' * (len(self.tasks) > 1)}"
            parts.append(number if by_number else f"tasks {', '.join(self.tasks)}")
        scored = [other.sets for other in alike if other.tasks == self.tasks]
        if own := self.sets - frozenset.intersection(*scored):
            metrics: dict[str, set[str]] = {}
            for name, metric in frozenset.union(*scored):
                metrics.setdefault(name, set()).add(metric)
            told = [f"{name} by {metric}" if len(metrics[name]) > 1 else name for name, metric in sorted(own)]
            parts.append(f"sets {', '.join(told)}")
        return ", ".join(parts)


def by_method(runs: Sequence[RunResults]) -> dict[str, list[RunResults]]:
    """The runs of every method, methods in the order of their first run.

    A method's runs on other tasks, or with other evaluation sets or metrics, stand apart, and the labels say which they
    are.

    Raises:
        ValueError: two runs of one method and seed on the same tasks and sets.
    """
    groups: dict[_Stream, list[RunResults]] = {}
    for run in runs:
        metrics = {event.set: event.metric for event in run.events(ScoreEvent)}
        sets = frozenset((entry["name"], metrics.get(entry["name"], "no metric")) for entry in run.sets)
        stream = _Stream(run.method, tuple(run.tasks), sets)
        group = groups.setdefault(stream, [])
        seeded = run.seed is not None and run.seed >= 0
        if seeded and (twin := next((other for other in group if other.seed == run.seed), None)) is not None:
            raise ValueError(
                f"{twin.path} and {run.path} are both of the method {run.method!r} with seed {run.seed}, which would "
                "count as two runs. Pass one of them; if they are of other settings, name the methods apart "
                "(TaskEvaluation's `method`)."
            )
        group.append(run)
    return {stream.label(groups): group for stream, group in groups.items()}


def warn_of_other_scoring(runs: Sequence[RunResults]) -> None:
    """Warn once if a set was scored with several metrics, numbers of questions or decodings in runs shown together.

    What was not recorded is not compared, and neither are the numbers of tokens, which are the model's own.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for label, run in zip(run_labels(runs), runs, strict=True):
        for event in run.events(ScoreEvent):
            decoding = {key: value for key, value in (event.decoding or {}).items() if not key.endswith("token_id")}
            recorded = {
                "metric": event.metric,
                "number of questions": event.n,
                "decoding": json.dumps(decoding, sort_keys=True) if decoding else None,
            }
            for what, value in recorded.items():
                if value is not None:
                    found.setdefault((event.set, what), {}).setdefault(str(value), label)
    other = [
        f"{what} of {name!r}: " + ", ".join(f"{value} in {label}" for value, label in values.items())
        for (name, what), values in found.items()
        if len(values) > 1
    ]
    if other:
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        warnings.warn(
            "the runs shown together were not scored alike, so their differences may be that: "
            f"{'; '.join(other[:3])}{more}.",
            stacklevel=3,
        )


def all_shares(runs: Sequence[RunResults], kind: str = "task") -> bool:
    """Whether the scores of every set of a kind, and so their means, are shares (`RunResults.is_share`)."""
    return all(run.is_share(name) for run in runs for name in run.names(kind))


def summary_columns(runs: Sequence[RunResults]) -> tuple[tuple[str, str, float], ...]:
    """`SUMMARY_COLUMNS`, and those of `FURTHER_COLUMNS` and `ANSWER_COLUMNS` that any of the runs has."""
    counted = {key for run in runs for key, value in run.summary().items() if not math.isnan(value)}
    further = (*FURTHER_COLUMNS, *ANSWER_COLUMNS)
    return (*SUMMARY_COLUMNS, *(column for column in further if column[0] in counted))


def run_table(runs: Sequence[RunResults]) -> Table:
    """The figures after the last task, one row per run."""
    rows: list[list[Cell]] = []
    columns = summary_columns(runs)
    for label, run in zip(run_labels(runs), runs, strict=True):
        summary = run.summary()
        rows.append([label, seed_label(run.seed), *(summary[key] * factor for key, _, factor in columns)])
    return Table(["Run", "Seed", *(heading for _, heading, _ in columns)], rows)


def method_table(runs: Sequence[RunResults]) -> Table:
    """The figures after the last task, one row per method: mean ± 95 % confidence interval over its runs.

    Raises:
        ValueError: as `by_method`.
    """
    rows: list[list[Cell]] = []
    columns = summary_columns(runs)
    for method, group in by_method(runs).items():
        summaries = [run.summary() for run in group]
        estimates = [estimate([s[key] * factor for s in summaries]) for key, _, factor in columns]
        rows.append([method, len(group), *estimates])
    return Table(["Method", "Runs", *(heading for _, heading, _ in columns)], rows)


def step_name(run: RunResults, step: int) -> str:
    """``aligned`` for step -1 (``tested`` in results of `test`), else the name of the task that was just learnt."""
    if step < 0:
        return "tested" if isinstance(run.about, TestedEvent) else "aligned"
    return run.tasks[step]


def _counted(run: RunResults) -> list[tuple[str, str]]:
    """Key and heading of what the run counted of its answers."""
    known = {key for step in run.steps for one in run.answers(step).values() for key in one}
    return [(key, heading) for key, heading, _ in ANSWER_COLUMNS if key in known]


def _shares(run: RunResults, step: int, *kinds: str) -> list[Cell]:
    """Percent of the answers to the sets of some kinds that were empty, cut, or named no option, where counted."""
    return [100 * run.share_of_answers(key, step, kinds) for key, _ in _counted(run)]


def matrix_table(run: RunResults) -> Table:
    """Scores on every task with a test set (columns) of the aligned model and after every task (rows), percent.

    Behind them, where it was counted, the shares of empty answers and of those that the limit cut, over all tasks.
    """
    steps = range(-1, len(run.tasks))
    scores = [list(run.initial().values()), *run.matrix().tolist()]
    rows: list[list[Cell]] = [
        [row_name(run, step), *(100 * score for score in row), *_shares(run, step, "task")]
        for step, row in zip(steps, scores, strict=True)
    ]
    return Table(["%", *run.tested, *(heading for _, heading in _counted(run))], rows)


def safety_table(run: RunResults) -> Table:
    """Attack success per safety set, its mean and over-refusal per set after every step, percent.

    Behind them, where it was counted, the shares of empty answers and of those that the limit cut, over these sets.
    """
    safety, harmless = run.names("safety"), run.names("over_refusal")
    rows: list[list[Cell]] = []
    for step in run.steps:
        summary = run.summary(step)
        rates = [
            *run.safety(step).values(),
            summary["MASR"],
            summary["DASR"],
            *run.over_refusal(step).values(),
        ]
        shares = _shares(run, step, "safety", "over_refusal")
        rows.append([row_name(run, step), *(100 * r for r in rates), *shares])
    headings = [f"ASR {name}" for name in safety] + ["MASR", "DASR"] + [f"over-refusal {name}" for name in harmless]
    return Table(["%", *headings, *(heading for _, heading in _counted(run))], rows)


def helpfulness_table(run: RunResults) -> Table:
    """Scores of the helpfulness sets and their mean after every step, percent; no rows without such sets."""
    names = run.names("helpfulness")
    rows: list[list[Cell]] = []
    for step in run.steps if names else ():
        scores = [100 * score for score in run.scores(step, "helpfulness").values()]
        mean = 100 * run.summary(step)["helpfulness"]
        rows.append([row_name(run, step), *scores, mean, *_shares(run, step, "helpfulness")])
    return Table(["%", *names, "Mean", *(heading for _, heading in _counted(run))], rows)


def answers_table(run: RunResults) -> Table:
    """For every set and step, the percent of answers that were empty, that were cut, and that named no option."""
    rows: list[list[Cell]] = []
    for item in run.sets:
        for key, heading in _counted(run):
            found = [run.answers(step).get(item["name"], {}) for step in run.steps]
            if any(key in one for one in found):
                rows.append([item["name"], heading, *(_share(one, key) for one in found)])
    return Table(["Set", "Answers", *(row_name(run, step) for step in run.steps)], rows)


def row_name(run: RunResults, step: int) -> str:
    """What a table's row of a step is called."""
    return step_name(run, step) if step < 0 else f"after {step_name(run, step)}"


def mostly_empty_steps(run: RunResults) -> str:
    """After which steps most answers to which sets were empty, in words; ``""`` if after none."""
    found = {row_name(run, step): listed(sets) for step in run.steps if (sets := run.mostly_empty(step))}
    return "; ".join(f"{step}: {sets}" for step, sets in found.items())


def broken_runs(runs: Sequence[RunResults]) -> list[str]:
    """What is reported, beside their tables, of the runs whose model says mostly nothing after one of its steps."""
    named = zip(runs, run_labels(runs), strict=True)
    return [broken_not_safe(label, where) for run, label in named if (where := mostly_empty_steps(run))]


def gate_table(run: RunResults) -> Table:
    """What the safety gate did: the tasks that broke the budget, mean attack success before and after, percent."""
    rows: list[list[Cell]] = []
    for event in run.events(GateEvent):
        action = event.action.replace("_", " ")
        if event.raised_by is not None:
            action = f"{action}, {100 * event.raised_by:.1f} % of the way to all columns"
        rates = (100 * event.budget, 100 * event.attack_success_rate)
        rows.append([event.task, *rates, action, 100 * event.kept_attack_success_rate])
    return Table(["Task", "Budget", "MASR", "Action", "MASR kept"], rows)


def score_table(runs: Sequence[RunResults]) -> Table:
    """Every score of every run in long form, one row per run, step and set; -1 is the aligned model."""
    rows: list[list[Cell]] = []
    counted = [column for column in ANSWER_COLUMNS if any(column[:2] in _counted(run) for run in runs)]
    for label, run in zip(run_labels(runs), runs, strict=True):
        for step in run.steps:
            counts = run.answers(step)
            for kind in KINDS:
                rows += [
                    [
                        label,
                        run.method,
                        seed_label(run.seed),
                        step,
                        step_name(run, step),
                        kind,
                        name,
                        100 * score,
                        *(_share(counts.get(name, {}), key) for key, _, _ in counted),
                    ]
                    for name, score in run.scores(step, kind).items()
                ]
    headings = ["run", "method", "seed", "step", "after", "kind", "set", "score_percent"]
    return Table([*headings, *(f"{key}_percent" for key, _, _ in counted)], rows)


def _share(counts: Mapping[str, int], key: str) -> float:
    """Percent of a set's answers; NaN where it was not counted."""
    return 100 * counts[key] / counts["n"] if key in counts and counts["n"] else math.nan
