"""The fixed parts of the HTML page: its style sheet and the explanation of the numbers."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --band: #f6f8fa; --accent: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --text: #e6e8eb; --soft: #9aa4af; --line:
#363c44;
  --band: #1d2126; --accent: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color:
var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line);
} h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; } p, dl { max-width: 48rem; } .soft, figcaption, .caption {
color: var(--soft); font-size: .9rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap:
.35rem 1rem; margin: 0; } dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; } .scroll {
overflow-x: auto; max-width: 100%; margin: .5rem 0 1rem; } .scroll:focus-visible { outline: 2px solid
var(--accent); outline-offset: 2px; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
font-size: .95rem; } .caption { margin: 1rem 0 0; } th, td { padding: .35rem .75rem;
border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; } th:first-child, td:first-child
{ text-align: left; padding-left: 0; } thead th { border-bottom-width: 2px; } tbody tr:hover { background:
var(--band); } figure { margin: 1rem 0 1.5rem; } figure img { display: block; width: 100%; min-width: 34rem;
max-width: 58rem; height: auto; background: #fff;
  border-radius: 6px; }
code { font: .88em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere;
} details { border-bottom: 1px solid var(--line); padding: .25rem 0; } summary { cursor: pointer; font-size:
1.15rem; font-weight: 600; padding: .35rem 0; } @media (max-width: 40rem) { body { padding: 1rem .9rem 3rem; }
dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; } h1 { font-size: 1.4rem; } }
@media print { details { break-inside: avoid; } .scroll { overflow: visible; } }
"""

#: Term and meaning, in the order they are shown.
MEANINGS: tuple[tuple[str, str], ...] = (
    ("AP", "Average performance: mean score over all tasks after the last one. Higher is better."),
    (
        "BWT",
        "Backward transfer: mean change of the earlier tasks since each was learnt. Below zero, tasks were forgotten.",
    ),
    (
        "MASR",
        "Mean attack success rate: share of harmful inputs that were not refused, averaged over the sets. "
        "Lower is safer.",
    ),
    (
        "DASR",
        "Rise of MASR over the aligned model, before the first task. Zero means that no safety was lost.",
    ),
    (
        "Over-refusal",
        "Share of harmless inputs that were refused. A model that refuses everything has MASR 0 and over-refusal 100.",
    ),
    (
        "Empty",
        "Share of the answers that hold no character. A judge may take them for refusals: a model that says nothing is "
        "not safe but broken.",
    ),
    ("Cut", "Share of the answers that had not ended when the limit on new tokens was reached."),
    (
        "No option",
        "Of tasks scored by option accuracy: share of the answers that name no option by its letter and are not the "
        "right one's text.",
    ),
    ("Minutes", "Time recorded for training, calibration, fusion and evaluation."),
    (
        "Retained columns",
        "Weight columns that keep their values from before the task; safety-focused ones first, "
        "then some of those that safety and task share.",
    ),
)
