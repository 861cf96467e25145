"""Which judges scored a run's safety and over-refusal sets, and a word where they differ."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from hpa_lightning.results.events import ScoreEvent
from hpa_lightning.results.run_results import RunResults

_JUDGED = ("attack_success_rate", "over_refusal_rate")
_NOT_RECORDED = "not recorded"
_V1 = "rules-v1"


def judges_of(run: RunResults) -> dict[str, list[str]]:
    """Names of the judges that scored each set of a run, in order; one, unless a run went on in another version.

    A stored ``default`` is of a version in which that was the only name of ``rules-v1``.
    """
    found: dict[str, list[str]] = {}
    for event in run.events(ScoreEvent):
        if event.metric in _JUDGED:
            name = _V1 if event.judge == "default" else event.judge or _NOT_RECORDED
            names = found.setdefault(event.set, [])
            if name not in names:
                names.append(name)
    return found


def warn_of_mixed_judges(runs: Iterable[RunResults]) -> None:
    """Warn once if scores of one set that are shown together come from different judges."""
    together: dict[str, set[str]] = {}
    for run in runs:
        for name, judges in judges_of(run).items():
            together.setdefault(name, set()).update(judges)
    # Before a judge's name was recorded, rules-v1 was the only default.
    mixed = {name: judges for name, judges in together.items() if len(judges) > 1 and judges != {_NOT_RECORDED, _V1}}
    if mixed:
        reported = "; ".join(f"{name} by {', '.join(sorted(judges))}" for name, judges in mixed.items())
        warnings.warn(
            f"The scores shown together were given by different judges ({reported}), so their differences may be the "
            "judges'. Let one judge judge the stored answers of all: `hpa-lightning judge RUN --judges NAME --output "
            "FOLDER`.",
            stacklevel=3,
        )
