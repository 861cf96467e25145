"""Stored answers judged again, without generating, and how far judges agree."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from hpa_lightning.files import path_inside, whole_folder
from hpa_lightning.metrics import CHOICE_METRICS
from hpa_lightning.metrics.by_category import category_scores
from hpa_lightning.metrics.judges import RefusalJudge, judge_name, resolve_judge
from hpa_lightning.metrics.safety import judged
from hpa_lightning.metrics.scoring import answer_counts, broken_not_safe, judged_rows, listed, mostly_empty
from hpa_lightning.results.events import Event, RunEvent, ScoreEvent, event_of
from hpa_lightning.results.predictions import FOLDER, Predictions, prediction_file, read_predictions
from hpa_lightning.results.result_file import RESULT_FILE, result_file, result_line
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import Table

#: Kinds of the sets whose answers a judge scores.
JUDGED = ("safety", "over_refusal")
_NOT_JUDGED = {"task": "a task", "helpfulness": "one of helpfulness"}


def judge_run(
    run: str | Path, judges: Sequence[RefusalJudge], sets: Sequence[str] | None = None
) -> tuple[list[Predictions], dict[str, list[list[bool]]]]:
    """Let every judge judge every stored answer to the safety and over-refusal sets.

    Sets of multiple choice have no answers that could be judged, and judges that distinguish safe from unsafe cannot
    measure over-refusal: both are left out.

    Args:
        run: the run's folder.
        judges: at least one.
        sets: names of the sets; all that can be judged by all judges when ``None``.

    Returns:
        The answers, and by judge for each of them the verdicts, True = refused (or safe, by a guard model).

    Raises:
        ValueError: the same judge twice, no such set, a set in ``sets`` that cannot be judged, or no answers.
    """
    called = [judge_name(judge) for judge in judges]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ValueError(f"two of the judges are {twice!r} ('default' is {judge_name(resolve_judge('default'))!r}).")
    kinds = {item["name"]: item["kind"] for item in RunResults.from_file(run).sets}
    answers = list(read_predictions(run, {name for name, kind in kinds.items() if kind in JUDGED}))
    reasons = {name: _NOT_JUDGED.get(kind, kind) for name, kind in kinds.items() if kind not in JUDGED}
    reasons |= dict.fromkeys((item.set for item in answers if _is_choice(item)), "scored by likelihood")
    for judge in judges:
        if getattr(judge, "judges", "refusal") != "refusal":
            reason = f"over-refusal, and {judge_name(judge)} distinguishes safe from unsafe"
            reasons |= dict.fromkeys((name for name, kind in kinds.items() if kind == "over_refusal"), reason)
    for name in sets or ():
        if name not in kinds or name in reasons:
            judgeable = [other for other in kinds if other not in reasons]
            raise ValueError(
                f"the set {name!r} is {reasons.get(name, 'not of this run')}; sets that can be judged: {judgeable}."
            )
    answers = [item for item in answers if item.set not in reasons and (sets is None or item.set in sets)]
    if not answers:
        raise ValueError(f"{run} has no stored answers that these judges could judge.")
    verdicts: dict[str, list[list[bool]]] = {judge_name(judge): [] for judge in judges}
    for judge in judges:
        for item in answers:
            responses = [row["response"] for row in item.rows]
            questions = [row.get("question", row["prompt"]) for row in item.rows]
            verdicts[judge_name(judge)].append(judged(responses, judge, questions))
    return answers, verdicts


def _is_choice(item: Predictions) -> bool:
    return any("choices" in row for row in item.rows)


def rates_table(run: str | Path, answers: Sequence[Predictions], verdicts: Mapping[str, list[list[bool]]]) -> Table:
    """Attack success and over-refusal in percent by set and step, with every judge, and the share of empty answers."""
    kinds = {item["name"]: item["kind"] for item in RunResults.from_file(run).sets}
    rows: list[list[str | float]] = []
    for index, item in enumerate(answers):
        over = kinds[item.set] == "over_refusal"
        refused = [float(np.mean(judged_by[index])) for judged_by in verdicts.values()]
        kind, step = "over-refusal %" if over else "attack success %", "aligned" if item.step < 0 else str(item.step)
        empty = 100 * answer_counts(item.rows)["empty"] / len(item.rows) if item.rows else math.nan
        rows.append([item.set, kind, step, *(100 * (rate if over else 1 - rate) for rate in refused), empty])
    return Table(["Set", "Rate", "After task", *verdicts, "Empty %"], rows)


def mostly_silent(answers: Sequence[Predictions]) -> str | None:
    """What accompanies the rates of a run most of whose answers to a set were empty after some step, if any."""
    counts = {}
    for item in answers:
        name = f"{item.set}, {'aligned' if item.step < 0 else f'after task {item.step}'},"
        counts[name] = {"n": len(item.rows), **answer_counts(item.rows)}
    return broken_not_safe("The model", listed(empty)) if (empty := mostly_empty(counts)) else None


def agreements(verdicts: Mapping[str, list[list[bool]]]) -> list[str]:
    """For every pair of judges Cohen's kappa and the confusion table over all answers, as text."""
    flat = {name: [verdict for part in parts for verdict in part] for name, parts in verdicts.items()}
    names, texts = list(flat), []
    for first, left in enumerate(names):
        for right in names[first + 1 :]:
            table = confusion_matrix(flat[left], flat[right], labels=[True, False])
            constant = len({*flat[left], *flat[right]}) == 1
            kappa = "not defined, both gave one verdict throughout"
            if not constant:
                kappa = f"{cohen_kappa_score(flat[left], flat[right]):.3f}"
            rows = [
                [f"{left}: {yes}", *line] for yes, line in zip(("refused", "answered"), table.tolist(), strict=True)
            ]
            confusion = Table(["", f"{right}: refused", f"{right}: answered"], rows)
            alike = f"{table.trace()} of {table.sum()} alike"
            texts.append(f"{left} and {right}: Cohen's kappa {kappa}, {alike}.\n\n{confusion.text()}")
    return texts


def write_judged(
    run: str | Path,
    output: str | Path,
    answers: Sequence[Predictions],
    verdicts: Mapping[str, list[list[bool]]],
    judge: RefusalJudge,
) -> None:
    """Write a run's results and answers with the scores and verdicts of another judge; the run stays as it is.

    The output is there as a whole or not at all.

    What the judge cannot judge keeps its score: tasks, multiple choice, and over-refusal if it distinguishes safe from
        unsafe.

    Raises:
        ValueError: the output exists and is not empty or is among the run's answers, a link leads out of the answers'
            folder, or answers are missing, so that the mean would mix two judges.
    """
    run, output, name = Path(run), Path(output), judge_name(judge)
    if output.resolve().is_relative_to((run / FOLDER).resolve()):
        raise ValueError(f"{output} is among the answers of {run}, which stay as they are; choose another output.")
    results = RunResults.from_file(run)
    kinds = {item["name"]: item["kind"] for item in results.sets}
    judged_again = {(item.step, item.set) for item in answers}
    judged_kinds = {kinds[item.set] for item in answers}
    for score in results.events(ScoreEvent):
        is_judged = score.kind in judged_kinds and score.metric not in CHOICE_METRICS
        if is_judged and (score.step, score.set) not in judged_again:
            raise ValueError(
                f"there are no answers to {score.set} of step {score.step} to judge again, and its score by the "
                "earlier judge would be mixed with the new ones; judge all sets, of a run that kept all its answers."
            )
    rates: dict[tuple[int, str], float] = {}
    categories: dict[tuple[int, str], Mapping[str, Any] | None] = {}
    with whole_folder(output) as folder:
        _copy_answers(run / FOLDER, folder / FOLDER)
        for item, verdict in zip(answers, verdicts[name], strict=True):
            refused = float(np.mean(verdict))
            rates[item.step, item.set] = refused if kinds[item.set] == "over_refusal" else 1 - refused
            new = judged_rows(judge, [row["response"] for row in item.rows], verdict)
            old = ({key: value for key, value in row.items() if key != "refusal"} for row in item.rows)
            rows = [{**row, **more} for row, more in zip(old, new, strict=True)]
            path = prediction_file(folder, item.step, item.set)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            metric = "over_refusal_rate" if kinds[item.set] == "over_refusal" else "attack_success_rate"
            categories[item.step, item.set] = category_scores(metric, rows).get("categories")
        records: list[Event | dict[str, Any]] = []
        for record in results.records:
            event = event_of(record, str(results.path))
            if isinstance(event, RunEvent):
                event = replace(event, judge=name, judged_again=str(result_file(run)))
            elif isinstance(event, ScoreEvent) and (event.step, event.set) in rates:
                place = event.step, event.set
                event = replace(event, score=rates[place], judge=name, categories=categories[place])
            else:
                event = None  # as it is
            records.append(record if event is None else event)
        (folder / RESULT_FILE).write_bytes(b"".join(map(result_line, records)))


def _copy_answers(source: Path, target: Path) -> None:
    """Copy the answers and their images; what a link leads to outside the folder is not this run's.

    Raises:
        ValueError: such a link.
    """
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source).as_posix()
        if path_inside(source, name, f"the folder {source}").is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
