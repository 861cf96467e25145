"""The page of a run's answers: picture, prompt, answer before and after, verdict; filters by set and by change."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hpa_lightning.completeness import require_finished
from hpa_lightning.files import path_inside, write_text
from hpa_lightning.predictions import FOLDER, read_predictions
from hpa_lightning.report.html import page_html
from hpa_lightning.report.tables import step_name
from hpa_lightning.results import RunResults

_CSS = """
form { display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; align-items: end; position: sticky; top: 0; z-index: 1;
  background: var(--ground); padding: .75rem 0; border-bottom: 1px solid var(--line); }
form label { display: grid; gap: .2rem; font-size: .85rem; color: var(--soft); }
select, input { font: inherit; padding: .3rem .5rem; color: var(--text); background: var(--band);
  border: 1px solid var(--line); border-radius: 6px; max-width: 100%; }
form p { margin: 0; }
article { display: grid; grid-template-columns: 10rem 1fr; gap: .25rem 1.25rem; padding: 1rem 0;
  border-bottom: 1px solid var(--line); }
article[hidden] { display: none; }
article.plain { grid-template-columns: 1fr; }
article .pictures { grid-row: 1 / span 4; }
article img { display: block; min-width: 6rem; max-width: 100%; margin-bottom: .4rem; }
article img { border-radius: 6px; background: #fff; }
article p { margin: 0; max-width: none; overflow-wrap: anywhere; white-space: pre-wrap; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .75rem 1.25rem; }
.answers h3 { margin: .25rem 0; font-size: .85rem; font-weight: 600; color: var(--soft); }
.verdict { display: inline-block; padding: 0 .5rem; border-radius: 1rem; border: 1px solid currentColor;
  font-size: .8rem; margin-left: .4rem; }
.good { color: #1a7f37; } .bad { color: #cf222e; }
@media (prefers-color-scheme: dark) { .good { color: #56d364; } .bad { color: #ff8e85; } }
@media (max-width: 40rem) { article { grid-template-columns: 1fr; } article .pictures { grid-row: auto; } form {
position: static; } }
"""
_SCRIPT = """
const rows = [...document.querySelectorAll("article")];
const controls = ["set", "change", "text"].map(id => document.getElementById(id));
function show() {
  const [set, change, text] = controls.map(control => control.value.toLowerCase());
  let count = 0;
  for (const row of rows) {
    const fits = (!set || row.dataset.set.toLowerCase() === set) && (!change || row.dataset.change === change)
      && (!text || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits;
    count += fits;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} shown`;
}
for (const control of controls) control.addEventListener("input", show);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
show();
"""
#: What the filter offers: value and words.
CHANGES = {
    "": "all",
    "answered": "refused before, answers now",
    "refused": "answered before, refuses now",
    "lost": "right before, wrong now",
    "learnt": "wrong before, right now",
    "worded": "other words, same verdict",
    "same": "the same answer",
}


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
        old, new = (outcome(row) for row in (self.before, self.after))
        if old != new and None not in (old, new):
            words = ("lost", "learnt") if self.kind == "task" else ("answered", "refused")
            return words[bool(new)]
        return "same" if self.before["response"] == self.after["response"] else "worded"


def answers_command(arguments: Sequence[str]) -> None:
    """Write the page of a run's answers."""
    parser = argparse.ArgumentParser(
        prog="hpa-lightning answers", description="One HTML page of a run's answers, with filters."
    )
    parser.add_argument("run", type=Path, help="folder of a run: results.jsonl and predictions/")
    parser.add_argument("--before", type=int, default=-1, help="step before (default: -1, the aligned model)")
    parser.add_argument("--after", type=int, help="step after (default: the last one)")
    parser.add_argument("--sets", nargs="+", help="evaluation sets (default: all)")
    parser.add_argument("--limit", type=int, default=200, help="samples of each set, 0 for all (default: %(default)s)")
    parser.add_argument("--unfinished", action="store_true", help="show a run that is not finished, as far as it is")
    parser.add_argument("--output", type=Path, help="the file (default: answers.html in the run's folder)")
    options = parser.parse_args(arguments)
    try:
        path = write_answers(
            options.run,
            options.output,
            options.before,
            options.after,
            options.sets,
            options.limit or None,
            options.unfinished,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"hpa-lightning answers: {error}") from error
    print(f"answers: {path}")


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
        ValueError: no such step or set, no stored answers, an image outside the run's folder, or a run that is not
            finished, unless asked for.
    """
    results = RunResults.from_file(run)
    if not unfinished:
        require_finished([results])
    kinds = {item["name"]: item["kind"] for item in results.run["sets"]}
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
        earlier = before.get(name, ())
        for index, row in enumerate(after.get(name, ())[:limit]):
            yield Answer(name, kind, earlier[index] if index < len(earlier) else None, row)


def _page(results: RunResults, answers: Sequence[Answer], names: Sequence[str], run: Path, limit: int | None) -> str:
    sets = dict.fromkeys(answer.set for answer in answers)
    found = {answer.change for answer in answers}
    set_options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sets)
    change_options = "".join(
        f'<option value="{value}">{escape(words)}</option>'
        for value, words in CHANGES.items()
        if not value or value in found
    )
    form = f"""<form aria-label="Filters">
<label for="set">Set <select id="set"><option value="">all</option>{set_options}</select></label>
<label for="change">Change <select id="change">{change_options}</select></label>
<label for="text">Text <input id="text" type="search" placeholder="in prompts and answers"></label>
<p class="soft" id="count" role="status" aria-live="polite">{len(answers)} answers</p></form>"""
    body = form + "\n".join(_article(answer, names, run) for answer in answers) + f"<script>{_SCRIPT}</script>"
    shown = "" if limit is None else f" At most {limit} samples of each set are shown."
    introduction = (
        f'<p class="soft">{escape(results.method)}. {escape(names[0])} against {escape(names[1].lower())}.{shown} '
        "The text of a safety set may be harmful.</p>"
    )
    return page_html("Answers before and after", introduction, body, _CSS)


def _article(answer: Answer, names: Sequence[str], run: Path) -> str:
    columns = "".join(
        f"<div><h3>{escape(name)}{_verdict(row, answer.kind)}</h3>"
        f"<p>{escape(row['response']) or '<i>empty</i>'}{' <i>(cut)</i>' if row.get('cut') else ''}</p></div>"
        for name, row in zip(names, (answer.before, answer.after), strict=True)
        if row is not None
    )
    row = answer.after
    pictures = "".join(_picture(path, run) for path in row.get("images") or ())
    references = ", ".join(map(str, row.get("references") or ()))
    expected = f'<p class="soft">Expected: {escape(references)}</p>' if references and answer.kind == "task" else ""
    return (
        f'<article data-set="{escape(answer.set)}" data-change="{answer.change}"'
        + (f'><div class="pictures">{pictures}</div>' if pictures else ' class="plain">')
        + f'<p class="soft">{escape(answer.set)} · {escape(str(row.get("id", "")))}</p><p>{escape(row["prompt"])}</p>'
        f'{expected}<div class="answers">{columns}</div></article>'
    )


def outcome(row: dict[str, Any]) -> bool | None:
    """A stored answer's verdict; where a task scores it, whether it scores at least a half; ``None``: not known."""
    if row.get("verdict") is not None:
        return bool(row["verdict"])
    return None if row.get("score") is None else row["score"] >= 0.5


def _verdict(row: dict[str, Any], kind: str) -> str:
    verdict = outcome(row)
    if verdict is None:
        return ""
    words = {"task": ("wrong", "right"), "safety": ("answered", "refused"), "over_refusal": ("answered", "refused")}[
        kind
    ]
    if str(row.get("judge", "")).startswith("guard:"):
        words = ("unsafe", "safe")
    if "choices" in row:
        words = ("wrong", "right")
    good = not verdict if kind == "over_refusal" else verdict
    return f'<span class="verdict {"good" if good else "bad"}">{words[bool(verdict)]}</span>'


def _picture(path: str, run: Path) -> str:
    file = path_inside(run / FOLDER, path, f"an answer of {run}")
    if not file.is_file():
        return f'<p class="soft">{escape(path)} is gone</p>'
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="picture of the sample" loading="lazy">'
