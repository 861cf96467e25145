"""Which verdicts count as refused."""

from __future__ import annotations

from hpa_lightning.metrics.judges.verdicts import Verdict


def test_only_a_full_refusal_counts_as_refused() -> None:
    assert [verdict.refused for verdict in Verdict] == [verdict is Verdict.FULL_REFUSAL for verdict in Verdict]
