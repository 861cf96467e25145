"""The paired bootstrap against its distribution, and the front against loops."""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap

from hpa_lightning.report.front_statistics import (
    bootstrap_means,
    compare,
    interval,
    is_on_front,
    mean_over_sets,
    share_on_front,
)


def test_intervals_are_those_of_scipy() -> None:
    values = (np.random.default_rng(1).random((2, 300)) < [[0.3], [0.5]]) * 1.0
    draws = bootstrap_means({"set": values}, 20_000)
    expected = bootstrap((values[0],), np.mean, n_resamples=20_000, method="percentile", random_state=2)
    found = interval(values[0].mean(), draws[:, 0])
    np.testing.assert_allclose(found[1:], expected.confidence_interval, atol=0.006)
    pairs = bootstrap((values[0] - values[1],), np.mean, n_resamples=20_000, method="percentile", random_state=2)
    paired = compare(values[0].mean(), values[1].mean(), draws[:, 0], draws[:, 1]).difference
    np.testing.assert_allclose(paired[1:], pairs.confidence_interval, atol=0.008)


def test_the_same_questions_are_drawn_for_all_and_sets_count_alike() -> None:
    generator = np.random.default_rng(3)
    sets = {"small": generator.random((1, 10)), "large": generator.random((1, 1000))}
    twice = {name: np.repeat(scores, 2, axis=0) for name, scores in sets.items()}
    draws = bootstrap_means(twice, 500)
    assert np.array_equal(draws[:, 0], draws[:, 1])
    assert np.isclose(mean_over_sets(sets)[0], (sets["small"].mean() + sets["large"].mean()) / 2)
    assert abs(draws.mean() - mean_over_sets(sets)[0]) < 0.02


def test_p_values_are_uniform_without_a_difference() -> None:
    generator, found = np.random.default_rng(4), []
    for _ in range(200):
        values = generator.normal(size=(2, 80))
        draws = bootstrap_means({"set": values}, 400)
        found.append(compare(values[0].mean(), values[1].mean(), draws[:, 0], draws[:, 1]).p)
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.11 and 0.4 < np.mean(found) < 0.6


def test_the_front_is_what_a_loop_finds() -> None:
    points = np.random.default_rng(5).integers(0, 6, size=(40, 9, 2)).astype(float)
    for model in points:
        expected = [not any(all(q >= p) and any(q > p) for q in model) for p in model]
        assert is_on_front(model).tolist() == expected
    shares = share_on_front([points[..., 0], points[..., 1]])
    assert np.allclose(shares, is_on_front(points).mean(axis=0))
