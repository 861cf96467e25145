"""Linear and task-vector merging against loops in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_precision import LowPrecision

from hpa_lightning.functional import lora_update, merge_linearly
from hpa_lightning.modules.merging import merge_task_vectors


def weights(seed: int, rows: int = 7, columns: int = 10, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_linear_merging(dtype: torch.dtype, share: float) -> None:
    tuned, safe = weights(1, dtype=dtype), weights(2, dtype=dtype)
    expected = (1 - share) * tuned.double().numpy() + share * safe.double().numpy()
    merged = merge_linearly(tuned, safe, share)
    assert merged.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}[dtype]
    np.testing.assert_allclose(merged.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_update_of_an_adapter(dtype: torch.dtype, low_precision: LowPrecision) -> None:
    a, b = weights(1, 48, 64, dtype), weights(2, 40, 48, dtype)
    expected = 0.5 * b.double().numpy() @ a.double().numpy()
    exact = lora_update(a, b, 0.5)
    with low_precision(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = lora_update(a, b, 0.5)
    for result in (exact, found):
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="lora_b"):
        lora_update(a, b[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_and_equal_entries_are_exact(dtype: torch.dtype) -> None:
    tuned, safe = weights(1, dtype=dtype), weights(2, dtype=dtype)
    tuned[3] = safe[3]
    assert torch.equal(merge_linearly(tuned, safe, 0), tuned)
    assert torch.equal(merge_linearly(tuned, safe, 1), safe)
    for share in (0.1, 0.37, 0.5, 0.93):
        assert torch.equal(merge_linearly(tuned, safe, share)[3], safe[3])


def test_wrong_shares_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        merge_linearly(weights(1), weights(2), 1.5)
    with pytest.raises(ValueError, match="NaN"):
        merge_linearly(weights(1) / 0 * 0, weights(2), 0.5)
    with pytest.raises(ValueError, match="reference"):
        merge_linearly(weights(1), weights(2, 3), 0.5)


def trimmed(vector: np.ndarray, density: float) -> np.ndarray:
    """The entries of largest magnitude, one after the other."""
    kept = np.zeros(vector.size)
    order = sorted(range(vector.size), key=lambda i: -abs(vector.flat[i]))
    for index in order[: int(density * vector.size)]:
        kept[index] = vector.flat[index]
    return kept.reshape(vector.shape)


def elected_mean(vectors: list[np.ndarray], weight: float, sign_of: str) -> np.ndarray:
    """TIES after trimming: entry by entry the elected sign and the mean of those that have it."""
    merged = np.zeros(vectors[0].shape)
    for place in np.ndindex(*merged.shape):
        values = [vector[place] for vector in vectors]
        vote = sum(values) if sign_of == "total" else sum(np.sign(value) for value in values)
        sign = 1.0 if vote >= 0 else -1.0
        agreeing = [value for value in values if np.sign(value) == sign]
        merged[place] = weight * sum(agreeing) / max(1, len(agreeing))
    return merged


def vectors(count: int = 3) -> list[torch.Tensor]:
    return [weights(seed) for seed in range(10, 10 + count)]


def as_numpy(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


@pytest.mark.parametrize("sign_of", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
def test_ties(sign_of: Any, density: float) -> None:
    merged = merge_task_vectors(vectors(), "ties", 0.8, density, sign_of)
    expected = elected_mean([trimmed(vector, density) for vector in as_numpy(vectors())], 0.8, sign_of)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_sums() -> None:
    plain = as_numpy(vectors())
    merged = merge_task_vectors(vectors(), "task_arithmetic", 0.8)
    np.testing.assert_allclose(merged.numpy(), 0.8 * sum(plain), rtol=1e-5, atol=1e-6)
    merged = merge_task_vectors(vectors(), "magnitude_prune", 0.8, 0.3)
    expected = 0.8 * sum(trimmed(vector, 0.3) for vector in plain)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare(method: Any) -> None:
    """What is dropped is read off merges of single vectors: the first vector's draw does not depend on later ones."""
    density, plain = 0.4, as_numpy(vectors(2))
    torch.manual_seed(3)
    first = merge_task_vectors(vectors(1), method, 1.0, density).double().numpy()
    torch.manual_seed(3)
    both = merge_task_vectors(vectors(2), method, 1.0, density).double().numpy()

    kept = first != 0
    assert 0.2 < kept.mean() < 0.6
    np.testing.assert_allclose(first[kept], plain[0][kept] / density, rtol=1e-5)
    if method == "dare_linear":
        second = both - first
        np.testing.assert_allclose(second, np.where(abs(second) > 1e-5, plain[1] / density, 0), rtol=1e-4, atol=1e-5)
        assert 0.2 < (abs(second) > 1e-5).mean() < 0.6
    else:
        torch.manual_seed(3)
        draws = [torch.bernoulli(torch.full((7, 10), density)).double().numpy() for _ in range(2)]
        pruned = [draw * vector / density for draw, vector in zip(draws, plain, strict=True)]
        np.testing.assert_allclose(both, elected_mean(pruned, 1.0, "total"), rtol=1e-5, atol=1e-6)


def mergekit_vectors() -> list[torch.Tensor]:
    i, j = torch.arange(3.0).unsqueeze(1), torch.arange(8.0).unsqueeze(0)
    return [torch.cos((k + 1) * (0.9 * i * j + 1.7 * i) + 0.4 * k + 0.1 * j) * (1 + 0.5 * k) for k in range(3)]


# What mergekit 0.1's code (a6e40288, June 2026) returned for these three vectors, weights of 0.7 and a density of 0.5.
MERGEKIT = {
    "ties": [
        [1.2583, 1.1849, 1.109, 1.0513, 0.9211, 0.8776, 0.0, 0.0],
        [1.855, -1.2007, -0.8481, -1.4958, 0.0, 1.0143, -1.4144, 1.8666],
        [-0.9668, -1.4048, -1.9999, -1.1887, -1.4999, 1.2007, 1.9997, 1.4421],
    ],
    "ties_unnormalised": [
        [2.6425, 2.4882, 1.5526, 1.4718, 0.6447, 0.6143, 0.0, 0.0],
        [1.2985, -1.681, -0.5937, -1.047, 0.0, 1.42, -1.9802, 1.3066],
        [-0.6768, -0.9834, -1.3999, -1.6642, -1.05, 2.5214, 1.3998, 1.0095],
    ],
    "dare_ties_of_density_1": [
        [2.6425, 2.4882, 2.3091, 2.1069, 1.8836, 1.6415, 1.383, 1.1107],
        [1.2985, -1.681, 0.9404, -1.2827, 0.9975, 2.116, -1.9802, 1.3066],
        [-0.6768, -1.0836, -1.8688, -1.6642, -1.0686, 2.5214, 1.3998, 1.0095],
    ],
}


def test_what_mergekit_returns() -> None:
    """Its ``ties`` divides by the sum of the weights, so that equal ones cancel out; ``dare_ties`` does not divide."""
    found = {
        "ties": merge_task_vectors(mergekit_vectors(), "ties", 1.0, 0.5),
        "ties_unnormalised": merge_task_vectors(mergekit_vectors(), "ties", 0.7, 0.5, normalize=False),
        "dare_ties_of_density_1": merge_task_vectors(
            mergekit_vectors(), "dare_ties", 0.7, 1.0, normalize=False, rescale="norm"
        ),
    }
    for name, expected in MERGEKIT.items():
        np.testing.assert_allclose(found[name].numpy(), expected, atol=6e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(merge_task_vectors(mergekit_vectors(), "ties", 0.7, 0.5).numpy(), MERGEKIT["ties"])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_that_keeps_the_sum_of_magnitudes(method: Any) -> None:
    torch.manual_seed(3)
    merged = merge_task_vectors(vectors(2), method, 0.7, 0.4, normalize=False, rescale="norm").double().numpy()
    torch.manual_seed(3)
    left = [torch.bernoulli(torch.full((7, 10), 0.4)).double().numpy() * vector for vector in as_numpy(vectors(2))]
    scaled = [part * abs(v).sum() / abs(part).sum() for part, v in zip(left, as_numpy(vectors(2)), strict=True)]
    expected = np.zeros((7, 10))
    for place in np.ndindex(7, 10):
        values = [vector[place] for vector in scaled]
        sign = 1.0 if sum(values) >= 0 else -1.0
        expected[place] = 0.7 * sum(v for v in values if method == "dare_linear" or np.sign(v) == sign)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


def test_normalised_sums_are_means() -> None:
    merged = merge_task_vectors(vectors(), "task_arithmetic", 0.8, normalize=True)
    np.testing.assert_allclose(merged.numpy(), 0.8 * sum(as_numpy(vectors())) / 3, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="rescale is 'l2'"):
        merge_task_vectors(vectors(), "dare_ties", rescale="l2")  # type: ignore[arg-type]


def test_density_one_of_dare_is_task_arithmetic(recwarn: pytest.WarningsRecorder) -> None:
    expected = merge_task_vectors(vectors(), "task_arithmetic", 0.7)
    assert torch.equal(merge_task_vectors(vectors(), "dare_linear", 0.7, 1.0), expected)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "slerp"}, "slerp"),
        ({"density": 0.0}, "density"),
        ({"density": 1.2}, "density"),
        ({"weight": float("nan")}, "weight"),
        ({"majority_sign_method": "mean"}, "majority_sign"),
        ({"vectors": []}, "task vectors"),
        ({"vectors": [weights(1), weights(1, 3)]}, "task vectors"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_task_vectors(**{"vectors": vectors(), **change})
