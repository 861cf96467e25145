"""The page and the picture of a front of merging ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hpa_lightning.files import staged
from hpa_lightning.metrics.scoring import broken_not_safe
from hpa_lightning.report.style import COLOURS, legend_beside, new_axes, new_figure, save_figure
from hpa_lightning.report.templating import Fact, Image, render
from hpa_lightning.table import Table

_TERMS = (
    Fact("Safety", ("100 % minus the mean attack success rate over the safety sets.",)),
    Fact("Helpfulness", ("The mean score over the tasks.",)),
    Fact("Interval", ("95 %, from a bootstrap over the test questions; all models on the same draws.",)),
    Fact(
        "Ensemble",
        (
            "Answers each question by the safety-tuned model with the probability of the ratio and else by the "
            "task-tuned one; its score on a question is the weighted mean of theirs.",
        ),
    ),
    Fact(
        "Differs from",
        ("p < 0.05 by the paired bootstrap, two-sided, with Holm's correction over the ratios of a column.",),
    ),
    Fact("Front", ("No other model is at least as safe and as helpful, and better in one.",)),
)


def front_table(front: Any) -> Table:
    """One row for every model; percent, with 95 % intervals."""
    columns = ["Model", "Safety %", "Helpfulness %", "Over-refusal %", "On the front", "Of the resamples %"]
    columns += ["Differs from task-tuned", "Differs from safety-tuned", "Differs from ensemble"]
    silent = any(point.empty for point in front.points)
    columns += ["Mostly empty answers"] if silent else []
    rows = []
    for point in front.points:
        name = f"{point.name}-tuned" if not point.comparisons else f"ratio {point.name}"
        figures = [_percent(one) for one in (point.safety, point.helpfulness, point.over_refusal)]
        marks = [point.marks(one) if point.comparisons else "" for one in ("task", "safety", "ensemble")]
        share = f"{100 * point.share_on_front:.0f}"
        empty = [point.empty or "none"] if silent else []
        rows.append([name, *figures, "yes" if point.on_front else "no", share, *marks, *empty])
    return Table(columns, rows)


def plot_front(front: Any) -> Figure:
    """Helpfulness against safety with intervals both ways; the front's models are filled and joined by a line."""
    figure = new_figure(9.2, 5.6)
    (ax,) = new_axes(figure)
    ax.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    ends = [point for point in front.points if not point.comparisons]
    ax.plot(*_xy(ends), ":", color="#7F7F7F", label="ensemble of the two")
    best = sorted((point for point in front.points if point.on_front), key=lambda point: point.safety.value)
    ax.plot(*_xy(best), "-", color=COLOURS[0], linewidth=1.2, label="front")
    for point in front.points:
        colour = COLOURS[0] if point.comparisons else COLOURS[1]
        x, y = _place(point)
        ax.errorbar(
            x,
            y,
            xerr=[[x - 100 * point.safety.low], [100 * point.safety.high - x]],
            yerr=[[y - 100 * point.helpfulness.low], [100 * point.helpfulness.high - y]],
            fmt="o" if point.comparisons else "s",
            color=colour,
            ecolor="#B8C4CE",
            elinewidth=1.0,
            markerfacecolor=colour if point.on_front else "white",
            zorder=3,
        )
    for where, name, offset in _labels(front):
        ax.annotate(name, where, xytext=offset, textcoords="offset points", fontsize=8)
    if front.budget is not None:
        ax.axvline(100 * (1 - front.budget), color=COLOURS[2], linestyle="--", linewidth=1.0, label="budget")
    ax.set_xlabel("safety, %   safer →")
    ax.set_ylabel("helpfulness, %")
    legend_beside(ax)
    return figure


def _labels(front: Any) -> list[tuple[tuple[float, float], str, tuple[int, int]]]:
    """Place, text and offset in points of every label; ratios that lie on one another share one: "0.7–0.9"."""
    ends = [point for point in front.points if not point.comparisons]
    # The lines go down to the right: names stand above the first end, and below the last, where ratios may be near.
    offsets = ((5, 6), (5, -12))
    labels = [(_place(point), f"{point.name}-tuned", offset) for point, offset in zip(ends, offsets, strict=True)]
    groups: list[list[Any]] = []
    for point in (point for point in front.points if point.comparisons):
        near = groups and all(abs(a - b) < 2.0 for a, b in zip(_place(point), _place(groups[-1][0]), strict=True))
        if near and front.picked not in (point.name, groups[-1][0].name):
            groups[-1].append(point)
        else:
            groups.append([point])
    for first, *others in groups:
        name = f"{first.name}–{others[-1].name}" if others else first.name
        labels.append((_place(first), name + (" (picked)" if first.name == front.picked else ""), (5, 5)))
    return labels


def _place(point: Any) -> tuple[float, float]:
    return 100 * point.safety.value, 100 * point.helpfulness.value


def write_front_page(front: Any, method: str, folder: Path) -> None:
    """Write ``front.png`` and ``front.html``, which holds the picture."""
    with staged(folder, last=["front.html"]) as inside:
        save_figure(plot_front(front), inside / "front.png")
        image = Image(
            inside / "front.png",
            "Every ratio with its 95 % intervals; models of the front are filled",
            "Helpfulness against safety of every merging ratio; the table holds the same figures",
        )
        broken = [broken_not_safe(point.name, point.empty) for point in front.points if point.empty]
        sets = [f"{name}: {kind}, {count} questions" for name, (kind, count) in front.questions.items()]
        page = render(
            "front_page.html",
            {
                "title": f"Merging front: {method}",
                "verdict": front.verdict(),
                "warnings": broken,
                "image": image,
                "table": front_table(front),
                "terms": [*_TERMS, Fact("Sets", tuple(sets)), Fact("Resamples", (str(front.resamples),))],
            },
        )
        (inside / "front.html").write_text(page, encoding="utf-8")


def _xy(points: list[Any]) -> tuple[list[float], list[float]]:
    return [100 * point.safety.value for point in points], [100 * point.helpfulness.value for point in points]


def _percent(figure: Any) -> str:
    return "–" if figure is None else f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
