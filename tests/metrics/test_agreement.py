"""Agreement of raters against the programs that others use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpa_lightning.metrics.agreement import bootstrap_interval, fleiss_kappa, krippendorff_alpha


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(6))
def test_alpha_is_that_of_the_krippendorff_package(level: str, seed: int) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    draw = np.random.default_rng(seed)
    true = draw.integers(1, 6, 40)
    ratings = np.clip(true + draw.integers(-1, 2, (2 + seed, 40)), 1, 5).astype(float)
    ratings[draw.random(ratings.shape) < 0.2] = np.nan
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
    assert krippendorff_alpha(ratings, level) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("raters", [2, 3, 7])
def test_kappa_is_that_of_statsmodels(raters: int) -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    ratings = np.random.default_rng(raters).integers(0, 3, (raters, 50)).astype(float)
    table, _ = inter_rater.aggregate_raters(ratings.T.astype(int))
    assert fleiss_kappa(ratings) == pytest.approx(inter_rater.fleiss_kappa(table), abs=1e-12)


def test_published_example() -> None:
    """Krippendorff 2011, example C: nominal 0.743, ordinal 0.815."""
    nan = math.nan
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    assert krippendorff_alpha(ratings, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(ratings, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_what_is_not_defined_is_nan() -> None:
    assert math.isnan(krippendorff_alpha(np.full((2, 4), 3.0)))
    assert math.isnan(krippendorff_alpha(np.array([[1.0, 2.0]])))
    assert math.isnan(krippendorff_alpha(np.full((2, 4), np.nan)))
    assert math.isnan(fleiss_kappa(np.array([[1.0, 2.0]]))) and math.isnan(fleiss_kappa(np.ones((3, 4))))
    with pytest.raises(ValueError, match="level is 'interval'"):
        krippendorff_alpha(np.ones((2, 2)), "interval")  # type: ignore[arg-type]


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda drawn: float(values[drawn].mean()), 400, seed=1, draws=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_interval(lambda drawn: math.nan, 5, seed=0, draws=20) == pytest.approx(
        (math.nan,) * 2, nan_ok=True
    )


def test_one_unit_has_no_interval() -> None:
    assert all(map(math.isnan, bootstrap_interval(lambda drawn: 3.0, 1, seed=0)))
    assert bootstrap_interval(lambda drawn: 3.0, 2, seed=0) == (3.0, 3.0)
