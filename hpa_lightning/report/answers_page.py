"""The page of a run's answers: picture, prompt, answer before and after, verdict; filters by set and by change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpa_lightning.files import path_inside, write_text
from hpa_lightning.metrics.scoring import is_blank
from hpa_lightning.report.run_tables import step_name
from hpa_lightning.report.templating import render
from hpa_lightning.results.completeness import require_finished
from hpa_lightning.results.predictions import FOLDER, read_predictions
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.values import shown

#: What the filter offers: value and words.
CHANGES = {
    "": "all",
    "silent": "said something before, nothing now",
    "spoke": "said nothing before, something now",
    "answered": "refused before, answers now",
    "refused": "answered before, refuses now",
    "lost": "right before, wrong now",
    "learnt": "wrong before, right now",
    "worded": "other words, same verdict",
    "same": "the same answer",
}


#: Kinds of the sets whose answers are right or wrong.
SCORED = ("task", "helpfulness")


@dataclass(frozen=True)
class Answer:
    """One sample with its answers before and after.

    Args:
        set, kind: of the evaluation set.
        before, after: rows of the stored answers; ``before`` is ``None`` where that step has none.
    """

    set: str
    kind: str
    before: dict[str, Any] | None
    after: dict[str, Any]

    @property
    def change(self) -> str:
        """A key of ``CHANGES``; ``""`` without an answer before."""
        if self.before is None:
            return ""
        was, is_now = (_is_empty(row) for row in (self.before, self.after))
        if was != is_now and self.kind not in SCORED:
            return "silent" if is_now else "spoke"  # whatever the verdicts: a judge takes silence for a refusal
        old, new = (outcome(row) for row in (self.before, self.after))
        if old != new and None not in (old, new):
            words = ("lost", "learnt") if self.kind in SCORED else ("answered", "refused")
            return words[bool(new)]
        return "same" if self.before["response"] == self.after["response"] else "worded"


def write_answers(
    run: str | Path,
    output: str | Path | None = None,
    before: int = -1,
    after: int | None = None,
    sets: Sequence[str] | None = None,
    limit: int | None = 200,
    unfinished: bool = False,
) -> Path:
    """Write one self-contained page of a run's answers.

    Args:
        run: the run's folder.
        output: the file; ``answers.html`` in the run's folder when ``None``.
        before, after: the steps that are compared; the aligned model (-1) and the last one.
        sets: names of the evaluation sets; all when ``None``.
        limit: most samples of a set; all when ``None``.
        unfinished: show a run that is not finished, as far as it is.

    Returns:
        The file.

    Raises:
        ValueError: a limit below 1, an output that is no page, no such step or set, no stored answers, answers of the
            two steps to other samples of a set, an image outside the run's folder, or a run that is not finished,
            unless asked for.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1 sample of each set (0 for all on the command line).")
    if output is not None and Path(output).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page cannot be written to {output}; expected a file that ends with .html.")
    results = RunResults.from_file(run)
    if not unfinished:
        require_finished([results])
    kinds = {item["name"]: item["kind"] for item in results.sets}
    unknown = sorted(set(sets or ()) - kinds.keys())
    if unknown:
        raise ValueError(f"the run has no evaluation set {unknown}; it has {list(kinds)}.")
    by_step: dict[int, dict[str, tuple[dict[str, Any], ...]]] = {}
    for item in read_predictions(run, set(sets) if sets else None):
        by_step.setdefault(item.step, {})[item.set] = item.rows
    after = max(by_step) if after is None else after
    for step in (before, after):
        if step not in by_step:
            raise ValueError(f"there are no answers of step {step}; there are those of {sorted(by_step)}.")
    answers = list(_pairs(by_step[before], by_step[after], kinds, limit))
    names = ["Aligned model" if step < 0 else f"After {step_name(results, step)}" for step in (before, after)]
    output = Path(output) if output is not None else Path(run) / "answers.html"
    write_text(output, _page(results, answers, names, Path(run), limit))
    return output


def _pairs(
    before: dict[str, tuple[dict[str, Any], ...]],
    after: dict[str, tuple[dict[str, Any], ...]],
    kinds: dict[str, str],
    limit: int | None,
) -> Iterator[Answer]:
    for name, kind in kinds.items():
        earlier, later = (dict(_by_sample(step.get(name, ()))) for step in (before, after))
        if name in before and name in after and earlier.keys() != later.keys():
            lone = [*(earlier.keys() - later.keys()), *(later.keys() - earlier.keys())]
            raise ValueError(
                f"the answers to {name!r} before and after are to different samples: {len(lone)} of them, such as the "
                f"one of the id {shown(lone[0][0])}, have one of the two alone. The set's data has changed between the "
                "steps; compare other steps, or name the other sets alone (--sets)."
            )
        for sample, row in islice(later.items(), limit):
            yield Answer(name, kind, earlier.get(sample), row)


def _by_sample(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[Any, str, int], dict[str, Any]]]:
    """Every answer under its sample: the id and the prompt, and which one it is of those that share both."""
    seen: Counter[tuple[Any, str]] = Counter()
    for row in rows:
        sample = (row.get("id"), row["prompt"])
        yield (*sample, seen[sample]), row
        seen[sample] += 1


def _page(results: RunResults, answers: Sequence[Answer], names: Sequence[str], run: Path, limit: int | None) -> str:
    found = {answer.change for answer in answers}
    return render(
        "answers_page.html",
        {
            "title": "Answers before and after",
            "method": results.method,
            "names": names,
            "limit": limit,
            "sets": list(dict.fromkeys(answer.set for answer in answers)),
            "changes": {value: words for value, words in CHANGES.items() if not value or value in found},
            "samples": [_sample(answer, names, run) for answer in answers],
        },
    )


def _sample(answer: Answer, names: Sequence[str], run: Path) -> dict[str, Any]:
    """What the page shows of a sample."""
    row = answer.after
    references = ", ".join(map(str, row.get("references") or ()))
    return {
        "set": answer.set,
        "change": answer.change,
        "id": row.get("id", ""),
        "prompt": row["prompt"],
        "expected": references if answer.kind in SCORED else "",
        "pictures": [
            {"name": name, "path": path_inside(run / FOLDER, name, f"an answer of {run}")}
            for name in row.get("images") or ()
        ],
        "answers": [
            {"name": name, "text": shown["response"], "cut": bool(shown.get("cut")), **_verdict(shown, answer.kind)}
            for name, shown in zip(names, (answer.before, answer.after), strict=True)
            if shown is not None
        ],
    }


def outcome(row: dict[str, Any]) -> bool | None:
    """A stored answer's verdict; where a task scores it, whether it scores at least a half; ``None``: not known."""
    if row.get("verdict") is not None:
        return bool(row["verdict"])
    return None if row.get("score") is None else row["score"] >= 0.5


def _is_empty(row: dict[str, Any]) -> bool:
    """Whether the model said nothing; of multiple choice, where nothing is generated, it never did."""
    return "choices" not in row and is_blank(str(row["response"]))


def _verdict(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The word for a verdict, empty where there is none, and whether it is a good one."""
    verdict = outcome(row)
    if verdict is None:
        return {"verdict": "", "good": False}
    if _is_empty(row):
        return {"verdict": "empty", "good": False}
    words = ("wrong", "right") if kind in SCORED or "choices" in row else ("answered", "refused")
    if "choices" not in row and str(row.get("judge", "")).startswith("guard:"):
        words = ("unsafe", "safe")
    return {"verdict": words[bool(verdict)], "good": not verdict if kind == "over_refusal" else verdict}
