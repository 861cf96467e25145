"""From the answers to an evaluation set to its metric, in the same way wherever a set is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchmetrics import Metric

from hpa_lightning.metrics.by_category import category_scores, further_figures
from hpa_lightning.metrics.judges import RefusalJudge, Verdict, judge_name, partial_refusals
from hpa_lightning.metrics.judges.judged_text import given_answer, without_marks
from hpa_lightning.metrics.safety import OverRefusalRate, judged
from hpa_lightning.metrics.tasks import CHOICE_METRICS, build_metric
from hpa_lightning.metrics.tasks.choice_accuracy import likeliest
from hpa_lightning.metrics.tasks.grouped import GroupedChoiceMetric, GroupedMetric, MMEScore, subtasks_of, yes_or_no
from hpa_lightning.metrics.tasks.options import OptionAccuracy, names_no_option
from hpa_lightning.metrics.tasks.record_metric import MeanScore, References
from hpa_lightning.values import shown


def metric_of(evaluation_set: Any) -> Metric:
    """The metric of an evaluation set, with the set's own judge if it has one.

    Args:
        evaluation_set: has ``metric``, a name, and perhaps ``judge``.
    """
    judge = getattr(evaluation_set, "judge", None)
    return build_metric(evaluation_set.metric, **({} if judge is None else {"judge": judge}))


def is_multiple_choice(evaluation_set: Any) -> bool:
    """Whether the set is scored by the likelihoods of its choices, so that nothing is generated."""
    return evaluation_set.metric in CHOICE_METRICS


def check_scorable(metric: Metric, references: Sequence[str], choices: Sequence[str]) -> None:
    """Check what a record has to be scored by, before there is an answer.

    Raises:
        ValueError: no choices for a metric of multiple choice, references that the metric cannot read, or such that
            no answer could be right: nothing but punctuation, or a box without an area.
    """
    if isinstance(metric, tuple(CHOICE_METRICS.values())):
        if not choices or not references:
            raise ValueError(f"{len(choices)} choices and {len(references)} answers; expected choices and an answer.")
    elif isinstance(metric, MeanScore | GroupedMetric) and not any(
        metric.score(reference, references) for reference in references
    ):
        raise ValueError(f"no answer could be right: not even the references {shown(references)} are, by this metric.")


def score_answers(
    metric: Metric,
    predictions: Sequence[str],
    references: References,
    prompts: Sequence[str],
    groups: Sequence[str] | None = None,
    categories: Sequence[Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Update the metric, and return what each answer got.

    Args:
        metric: of answers.
        predictions, references, prompts: of the same records.
        groups, categories: of the records, for the metrics that score several records together.

    Returns:
        For every answer: where a judge decides, what `judged_rows` says of it; where the metric is a mean over
        answers or over groups of them, ``"score"``, and for options ``"no_option"``, whether it named none; else
        nothing.
    """
    if isinstance(metric, OverRefusalRate):
        verdicts = judged(predictions, metric.judge, prompts)
        metric.update(predictions, verdicts=verdicts)
        return judged_rows(metric.judge, predictions, verdicts)
    if isinstance(metric, GroupedMetric):
        scores = metric.scores(predictions, references)
        names = None if categories is None else subtasks_of(categories)
        metric.update(predictions, references, groups or [""] * len(predictions), names, scores=scores)
        if isinstance(metric, MMEScore):
            unread = [yes_or_no(given_answer(prediction)) is None for prediction in predictions]
        else:
            unread = [names_no_option(*pair) for pair in zip(predictions, references, strict=True)]
        return [{"score": score, "no_option": none} for score, none in zip(scores, unread, strict=True)]
    if isinstance(metric, MeanScore):
        scores = metric.scores(predictions, references)
        metric.update(predictions, references, scores=scores)
        if isinstance(metric, OptionAccuracy):
            unread = [names_no_option(*pair) for pair in zip(predictions, references, strict=True)]
            return [{"score": score, "no_option": none} for score, none in zip(scores, unread, strict=True)]
        return [{"score": score} for score in scores]
    metric.update(predictions, references)
    return [{} for _ in predictions]


def score_batch(metric: Metric, responses: Sequence[str], batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """:func:`score_answers` of the answers to a ``generate`` batch of the collator."""
    return score_answers(
        metric, responses, batch["references"], batch["questions"], batch.get("groups"), batch.get("categories")
    )


def answer_rows(
    batch: Mapping[str, Any], responses: Sequence[str], found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Put together what is kept of every answer to a ``generate`` batch.

    Args:
        batch: of the collator.
        responses: the answers; a list that knows it reports which of them were ``cut``.
        found: what :func:`score_answers` says of each.

    Returns:
        ``{"id", "prompt", "question", "response", "references"}``, ``"cut"`` where it is known, and what was found. The
        prompt is what the model read, the question the text of the last user turn. ``"group"`` and ``"categories"``
        where the record has them.
    """
    # A foreign module gives the answers only.
    ends = [{} if cut is None else {"cut": cut} for cut in getattr(responses, "cut", [None] * len(responses))]
    columns = (batch[key] for key in ("ids", "prompts", "questions", "references"))
    known = (batch.get(key) or [empty] * len(responses) for key, empty in (("groups", ""), ("categories", {})))
    places = [_place(group, categories) for group, categories in zip(*known, strict=True)]
    return [
        {"id": identity, "prompt": prompt, "question": question, "response": said, "references": list(wanted)}
        | end
        | place
        | one
        for identity, prompt, question, wanted, said, end, place, one in zip(
            *columns, responses, ends, places, found, strict=True
        )
    ]


def _place(group: str, categories: Mapping[str, str]) -> dict[str, Any]:
    """Where a record belongs, as it is beside its answer."""
    return ({"group": group} if group else {}) | ({"categories": dict(categories)} if categories else {})


def score_fields(
    evaluation_set: Any, score: float, rows: Sequence[Mapping[str, Any]], decoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a ``score`` event holds of a set, beside the step.

    Args:
        evaluation_set: with ``name``, ``kind`` and ``metric``.
        score: by its metric.
        rows: of its answers.
        decoding: how they were generated.
    """
    return {
        "set": evaluation_set.name,
        "kind": evaluation_set.kind,
        "metric": evaluation_set.metric,
        "score": score,
        "n": len(rows),
        **answer_counts(rows),
        **further_figures(evaluation_set.metric, rows),
        **category_scores(evaluation_set.metric, rows),
        **({} if is_multiple_choice(evaluation_set) else {"decoding": dict(decoding)}),
        **({"judge": rows[0]["judge"]} if rows and "judge" in rows[0] else {}),
    }


def is_blank(text: str) -> bool:
    """Whether a text holds neither a letter nor a digit, of any script, beside special tokens and marks of thoughts.

    Example:
        >>> [is_blank(text) for text in (" ", "!!!!!!", "\ufffd\ufffd", "42", "\u662f")]
        [True, True, True, False, False]
    """
    return not any(character.isalnum() for character in without_marks(text))


def mostly_empty(counts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The sets most of whose ``"n"`` answers are ``"empty"``; not those where empty answers were not counted.

    Example:
        >>> mostly_empty({"figstep": {"n": 4, "empty": 3}, "xstest": {"n": 4, "empty": 2}, "siuo": {"n": 4}})
        {'figstep': '3 of 4'}
    """
    return {
        name: f"{one['empty']} of {one['n']}" for name, one in counts.items() if 2 * (one.get("empty") or 0) > one["n"]
    }


def listed(counts: Mapping[str, str]) -> str:
    """What :func:`mostly_empty` found, in a sentence.

    Example:
        >>> listed({"figstep": "3 of 4", "siuo": "2 of 2"})
        'figstep 3 of 4, siuo 2 of 2'
    """
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def broken_not_safe(who: str, where: str) -> str:
    """What accompanies a rate of attack success, of a model that says mostly nothing.

    A judge takes an empty answer for a refusal, so that such a model has a low rate.
    """
    return (
        f"{who} gives mostly empty answers ({where}). It is broken rather than safe: do not read its attack success as "
        "a success."
    )


def answer_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count what a score alone does not show of the answers to a set.

    Args:
        rows: the answers, each with ``"response"`` and, where it is known, ``"cut"``: the limit ended it, and
            ``"no_option"``: it named none where an option was asked for.

    Returns:
        ``"empty"``: answers without a letter or digit, which a judge may take for refusals; ``"cut"``: answers that
        the limit on new tokens ended; ``"no_option"``: answers that named none. What is not known of all rows is
        left out; of multiple choice, where nothing is generated, everything.
    """
    if any("choices" in row for row in rows):
        return {}
    counts = {"empty": sum(is_blank(str(row["response"])) for row in rows)}
    for key in ("cut", "no_option"):
        if rows and all(row.get(key) is not None for row in rows):
            counts[key] = sum(bool(row[key]) for row in rows)
    return counts


def judged_rows(judge: RefusalJudge, predictions: Sequence[str], verdicts: Sequence[bool]) -> list[dict[str, Any]]:
    """What is stored of a judge's verdicts on answers.

    Returns:
        For every answer ``"judge"``, the judge's name; ``"verdict"``, true if refused (or safe, by a guard model); and
        of a partial refusal, which is not refused, ``"refusal"``.
    """
    partial = partial_refusals(judge, predictions)
    return [
        {
            "judge": judge_name(judge),
            "verdict": verdict,
            **({"refusal": Verdict.PARTIAL_REFUSAL.value} if half else {}),
        }
        for verdict, half in zip(verdicts, partial, strict=True)
    ]


def score_choices(
    metric: Metric,
    records: Sequence[Any],
    choose: Callable[[Sequence[Any]], Sequence[Sequence[float]]],
    rank: int = 0,
    world_size: int = 1,
) -> list[dict[str, Any]]:
    """Let a model choose, update a metric of multiple choice, and return what was chosen in each record.

    Args:
        metric: one of :data:`CHOICE_METRICS`; of one process alone it is not combined over processes.
        records: with ``choices``, and the right one first in ``answers`` or as their last turn.
        choose: records -> log-likelihoods of each one's choices.
        rank, world_size: of the processes that share the records; every one takes its part.

    Returns:
        For every record of this process's part ``{"id", "prompt", "question", "references", "response", "choices",
        "log_likelihoods", "verdict"}``: the likeliest choice, and whether it is right.
    """
    records = records[rank::world_size]
    likelihoods = choose(records)
    metric.sync_on_compute = world_size > 1
    wanted = [record.prompt_and_references()[1] for record in records]
    right = [record.choices.index(answers[0]) for record, answers in zip(records, wanted, strict=True)]
    if isinstance(metric, GroupedChoiceMetric):
        metric.update(
            likelihoods,
            right,
            [record.group for record in records],
            subtasks_of([record.categories for record in records]),
        )
    else:
        metric.update(likelihoods, right)
    return [
        {
            "id": record.id,
            "prompt": record.prompt,
            "question": record.prompt,
            "references": list(answers),
            "response": record.choices[likeliest(found)],
            "choices": list(record.choices),
            "log_likelihoods": list(found),
            "verdict": likeliest(found) == place,
            **_place(record.group, record.categories),
        }
        for record, answers, found, place in zip(records, wanted, likelihoods, right, strict=True)
    ]
