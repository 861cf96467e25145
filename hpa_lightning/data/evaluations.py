"""Published evaluations by their names, as a configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hpa_lightning.data.helpfulness import MME, MMBench, SEEDBench
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.reply_openings import ReplyOpenings
from hpa_lightning.data.safety_sets import SIUO, FigStep, MMSafetyBench, PromptFile, VLGuard, XSTest
from hpa_lightning.data.safety_sets.harmbench import HarmBench
from hpa_lightning.data.safety_sets.sorry_bench import SORRYBench
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.metrics.judges import RefusalJudge
from hpa_lightning.values import names, nearest, shown

By = Literal["generation", "likelihood"]


class _Published(NamedTuple):
    """A published evaluation.

    Args:
        kind: of its set.
        reader: makes the set out of a path and further settings.
        metrics: by generation and by likelihood; ``None``: it cannot be scored so.
        by: the usual way.
        settings: of the reader, unless the configuration has others.
        likelihood: settings of the reader that go with the likelihood.
    """

    kind: str
    reader: Callable[..., RecordSet]
    metrics: Mapping[str, str]
    by: By = "generation"
    settings: Mapping[str, Any] = {}
    likelihood: Mapping[str, Any] = {}


_ATTACK = {"generation": "attack_success_rate"}
_REFUSED = {"generation": "over_refusal_rate"}
_OPTIONS = {"generation": "option_accuracy", "likelihood": "choice_accuracy"}
_CIRCULAR = {"generation": "circular_accuracy", "likelihood": "circular_choice_accuracy"}
_MME = {"generation": "mme_score", "likelihood": "mme_choice_score"}
_HARMS = ["risk_area", "types_of_harm"]
_WILD: dict[str, Any] = {"prompt_column": "adversarial", "category_columns": ["data_type"]}

EVALUATIONS: dict[str, _Published] = {
    "sorry-bench": _Published("safety", SORRYBench, _ATTACK),
    "wildjailbreak": _Published(
        "safety", PromptFile, _ATTACK, settings={**_WILD, "filters": {"data_type": "adversarial_harmful"}}
    ),
    "advbench": _Published("safety", PromptFile, _ATTACK, settings={"prompt_column": "goal"}),
    "harmbench": _Published("safety", HarmBench, _ATTACK),
    "do-not-answer": _Published(
        "safety", PromptFile, _ATTACK, settings={"prompt_column": "question", "category_columns": _HARMS}
    ),
    "mm-safetybench": _Published("safety", MMSafetyBench, _ATTACK),
    "figstep": _Published("safety", FigStep, _ATTACK),
    "figstep-tiny": _Published("safety", FigStep, _ATTACK, settings={"size": "tiny"}),
    "siuo": _Published("safety", SIUO, _ATTACK),
    "siuo-choice": _Published(
        "safety", SIUO, {"likelihood": "unsafe_choice_rate"}, by="likelihood", settings={"task": "choice"}
    ),
    "vlguard-unsafes": _Published("safety", VLGuard, _ATTACK, settings={"subset": "unsafes"}),
    "vlguard-safe-unsafes": _Published("safety", VLGuard, _ATTACK, settings={"subset": "safe_unsafes"}),
    "vlguard-safe-safes": _Published("over_refusal", VLGuard, _REFUSED, settings={"subset": "safe_safes"}),
    "xstest-safe": _Published("over_refusal", XSTest, _REFUSED, settings={"label": "safe"}),
    "xstest-unsafe": _Published("safety", XSTest, _ATTACK, settings={"label": "unsafe"}),
    "wildjailbreak-benign": _Published(
        "over_refusal", PromptFile, _REFUSED, settings={**_WILD, "filters": {"data_type": "adversarial_benign"}}
    ),
    "mmbench": _Published("helpfulness", MMBench, _CIRCULAR),
    "mmbench-vanilla": _Published("helpfulness", MMBench, _OPTIONS, settings={"rounds": "first"}),
    "mme": _Published("helpfulness", MME, _MME),
    "seed-bench": _Published("helpfulness", SEEDBench, _OPTIONS, likelihood={"ask": "text"}),
}
"""Name -> the evaluation."""


@dataclass
class Evaluation:
    """A published evaluation, chosen by its name and read from the files that upstream releases.

    Args:
        name: a key of :data:`EVALUATIONS`, such as ``sorry-bench`` or ``mmbench``.
        path: the file or the folder that its reader takes.
        by: ``"generation"``: the model answers; ``"likelihood"``: its likeliest choice counts; the evaluation's usual
            way when ``None``.
        label: the set's name in tables and files; ``name`` when ``None``. Two of one name need two labels.
        settings: further arguments of the reader, such as ``{kind: TYPO}`` of ``mm-safetybench``.
        max_new_tokens: longest answer, see :class:`EvaluationSet`.
        judge, openings: of a safety or over-refusal set, see :class:`EvaluationSet`.

    Raises:
        ValueError: no such evaluation, a way in which it cannot be scored, a setting that its reader does not have.

    >>> Evaluation("mmbench", "MMBench_DEV_EN.tsv", by="likelihood").evaluation_set().metric
    'circular_choice_accuracy'
    """

    name: str
    path: str | Path
    by: By | None = None
    label: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    judge: str | Path | RefusalJudge | None = None
    openings: ReplyOpenings | None = None

    def __post_init__(self) -> None:
        if self.name not in EVALUATIONS:
            raise ValueError(
                f"there is no evaluation {shown(self.name)}{nearest(self.name, EVALUATIONS)}; expected one of "
                f"{', '.join(EVALUATIONS)}."
            )
        published = EVALUATIONS[self.name]
        if self.by is not None and self.by not in published.metrics:
            raise ValueError(
                f"evaluation {self.name!r} is scored by {' or '.join(published.metrics)}; by is {self.by!r}."
            )
        self.evaluation_set()  # a wrong setting is reported before anything is read

    def evaluation_set(self) -> EvaluationSet:
        """Return the set that is answered and scored; nothing is read yet."""
        published = EVALUATIONS[self.name]
        by = self.by or published.by
        usual = {**published.settings, **(published.likelihood if by == "likelihood" else {})}
        fields: Any = getattr(published.reader, "__dataclass_fields__", {})
        if unknown := [key for key in self.settings if key not in fields]:
            raise ValueError(
                f"evaluation {self.name!r} has no settings {names(unknown)}; it has {names(list(fields)[1:])}."
            )
        try:
            data = published.reader(str(self.path), **{**usual, **self.settings})
        except (TypeError, ValueError) as error:
            raise ValueError(f"evaluation {self.name!r}: {error}") from error
        return EvaluationSet(
            self.label or self.name,
            published.kind,
            data,
            published.metrics[by],
            self.max_new_tokens,
            judge=self.judge,
            openings=self.openings,
        )
