"""Attack success, its mean and rise, and over-refusal."""

import math
import pickle

import numpy as np
import pytest
import torch

from hpa_lightning.metrics import (
    AttackSuccessRate,
    AttackSuccessRise,
    MeanAttackSuccessRate,
    OverRefusalRate,
    attack_success_rate,
    attack_success_rise,
    mean_attack_success_rate,
    mean_over_refusal_rate,
    over_refusal_rate,
)
from hpa_lightning.metrics.judges import StringRefusalJudge

REFUSAL, ANSWER = "sorry , i cannot help with that .", "Mix the two."


def test_rates_count_refusals() -> None:
    responses = [REFUSAL] * 3 + [ANSWER]
    assert float(attack_success_rate(responses)) == pytest.approx(1 / 4)
    assert float(over_refusal_rate(responses)) == pytest.approx(3 / 4)


def test_the_judge_decides() -> None:
    def shouting(responses: list[str]) -> list[bool]:
        return [response.isupper() for response in responses]

    assert float(attack_success_rate(["NO", "no"], judge=shouting)) == pytest.approx(0.5)
    metric = AttackSuccessRate(judge=shouting)
    metric.update(["NO", "no", "no", "no"])
    assert float(metric.compute()) == pytest.approx(0.75)
    assert float(attack_success_rate(["openai"], judge="vlguard")) == 0.0
    assert float(attack_success_rate(["openai"])) == 1.0


def test_verdicts_of_three_classes_count_by_their_class() -> None:
    judge = StringRefusalJudge().verdicts
    assert float(attack_success_rate([ANSWER, ANSWER, REFUSAL], judge=judge)) == pytest.approx(2 / 3)
    assert float(attack_success_rate(["a"] * 4, judge=lambda found: torch.tensor([1, 0, 0, 0]))) == 0.75
    assert float(over_refusal_rate(["a"] * 2, judge=lambda found: np.array([True, False]))) == 0.5


@pytest.mark.parametrize("verdict", ["compliance", "", None, math.nan, 0.3, 2, ["refused"]])
def test_what_is_no_verdict_is_refused(verdict: object) -> None:
    with pytest.raises(ValueError, match=r"returned the verdict .*; expected True \(refused\) or False"):
        attack_success_rate(["Sure."], judge=lambda found: [verdict])


@pytest.mark.parametrize("metric_class", [AttackSuccessRate, OverRefusalRate])
def test_evaluation_call_and_batches(metric_class) -> None:
    metric = metric_class()
    metric.update([REFUSAL, ANSWER], [("",), ("",)])
    metric.update([ANSWER], [()])
    metric.update([])
    expected = {AttackSuccessRate: 2 / 3, OverRefusalRate: 1 / 3}[metric_class]
    assert float(metric.compute()) == pytest.approx(expected)
    assert float(pickle.loads(pickle.dumps(metric)).compute()) == pytest.approx(expected)
    assert metric.higher_is_better is False
    assert metric.plot()[1].lines


def test_nothing_seen_is_nan_and_warns() -> None:
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(attack_success_rate([]))
    metric = AttackSuccessRate()
    metric.update([])
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(metric.compute())
    mean = MeanAttackSuccessRate(["a", "b"])
    mean.update("a", [ANSWER])
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(mean.compute())


def test_mean_weighs_sets_alike() -> None:
    metric = MeanAttackSuccessRate(["small", "large"])
    metric.update("small", [ANSWER])
    metric.update("large", [REFUSAL] * 9 + [ANSWER])
    assert float(metric.compute()) == pytest.approx((1 + 0.1) / 2)
    assert float(mean_attack_success_rate([1.0, 0.1])) == pytest.approx(0.55)
    assert float(mean_attack_success_rate(torch.tensor([1.0, 0.1]))) == pytest.approx(0.55)
    assert float(mean_over_refusal_rate({"xstest": 0.3, "own": 0.1})) == pytest.approx(0.2)


def test_rise_is_the_published_difference() -> None:
    # SeqFT on original data: MASR 42.56, aligned 2.86, DASR 39.70 (HPA paper, main table).
    assert float(attack_success_rise([0.4256], [0.0286])) == pytest.approx(0.3970)
    metric = AttackSuccessRise({"a": 0.25, "b": 0.0})
    metric.update("a", [REFUSAL, ANSWER])
    metric.update("b", [ANSWER])
    assert float(metric.compute()) == pytest.approx(0.75 - 0.125)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="single string"):
        attack_success_rate("I cannot")
    with pytest.raises(ValueError, match="1 verdicts for 2 responses"):
        attack_success_rate(["a", "b"], judge=lambda responses: [True])
    with pytest.raises(ValueError, match="fractions"):
        mean_attack_success_rate([42.56])
    with pytest.raises(ValueError, match="at least one set"):
        mean_attack_success_rate({})
    with pytest.raises(ValueError, match="same sets"):
        attack_success_rise({"a": 0.1}, {"b": 0.1})
    with pytest.raises(ValueError, match="expected one of a, b"):
        MeanAttackSuccessRate(["a", "b"]).update("c", [ANSWER])
    with pytest.raises(ValueError, match="distinct"):
        MeanAttackSuccessRate(["a", "a"])
    with pytest.raises(ValueError, match="fractions"):
        AttackSuccessRise({"a": 2.86})
