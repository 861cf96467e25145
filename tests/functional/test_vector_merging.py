"""Merging of task vectors against loops in float64 NumPy, peft's functions and mergekit's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from hpa_lightning.functional import merge_spherically, merge_task_vectors


def weights(seed: int, rows: int = 7, columns: int = 10, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


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


# -- the programs themselves ------------------------------------------------------------------------------------------


def spread_vectors(count: int = 3) -> list[torch.Tensor]:
    """Vectors of unequal sizes, some entries 0."""
    return [(k + 1) * weights(30 + k, 24, 40) * (weights(40 + k, 24, 40) > -1) for k in range(count)]


@pytest.mark.parametrize("method", ["task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("share", [(0.7, 0.7, 0.7), (0.2, 0.5, 1.3), (1.0, 0.0, -0.4)])
def test_equals_peft(method: Any, share: tuple[float, ...]) -> None:
    """With one weight for each vector, which ``add_weighted_adapter`` passes on; of equal seeds for what is drawn."""
    options = {} if method == "task_arithmetic" else {"density": 0.3}
    function = getattr(merge_utils, method)
    torch.manual_seed(5)
    expected = function(spread_vectors(), torch.tensor(share), **options)
    generator = torch.Generator().manual_seed(5)
    found = merge_task_vectors(spread_vectors(), method, share, 0.3, convention="peft", generator=generator)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("share", [(0.7, 0.7, 0.7), (0.2, 0.5, 1.3), (1.0, 0.0, -0.4)])
@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_equals_mergekit(method: Any, normalize: bool | None, share: tuple[float, ...], density: float) -> None:
    """Its own classes on the same tensors; of equal seeds for what is drawn."""
    pytest.importorskip("mergekit")
    from mergekit.merge_methods.base import TensorGroup
    from mergekit.merge_methods.registry import registered_methods

    base = weights(9, 24, 40)
    group = TensorGroup.from_tensors([base, *(base + vector for vector in spread_vectors())], base_index=0)
    (program,) = (one for one in registered_methods() if one.spec.name == method)
    by_model = {entry.id: one for entry, one in zip(group.non_base, share, strict=True)}
    options = {spec.name: spec.default for spec in program.spec.parameters} | {
        "weight": by_model,
        "density": dict.fromkeys(by_model, density),
    }
    if normalize is not None:
        options["normalize"] = normalize
    torch.manual_seed(5)
    expected = program.merge_group(group, **options)
    vectors = [entry.tensor - base for entry in group.non_base]
    generator = torch.Generator().manual_seed(5)
    found = merge_task_vectors(
        vectors, method, share, density, normalize=normalize, convention="mergekit", generator=generator
    )
    torch.testing.assert_close(base + found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("distance", [1e-3, 0.5, 3.0])
def test_equals_the_slerp_of_mergekit(share: float, distance: float) -> None:
    slerp = pytest.importorskip("mergekit.merge_methods.slerp").slerp
    one = weights(1)
    other = one + distance * weights(2)
    expected = slerp(torch.tensor([share]), one.unsqueeze(0), other.unsqueeze(0))[0]
    torch.testing.assert_close(merge_spherically(one, other, share), expected, rtol=1e-5, atol=1e-6)


def test_what_is_drawn_is_binomial() -> None:
    """Each entry is kept with the chance ``density``, and the share of what is kept differs from vector to vector."""
    ones, generator = torch.ones(200, 500), torch.Generator().manual_seed(1)
    shares = []
    for _ in range(20):
        kept = merge_task_vectors([ones], "dare_linear", 1.0, 0.3, rescale="density", generator=generator) > 0
        shares.append(float(kept.double().mean()))
        for lines in (kept, kept.T):  # no row and no column is favoured
            deviation = (lines.double().mean(1) - 0.3) / (0.3 * 0.7 / lines.shape[1]) ** 0.5
            assert 0.7 < float(deviation.std()) < 1.3
    error = (0.3 * 0.7 / ones.numel()) ** 0.5
    assert abs(np.mean(shares) - 0.3) < 4 * error / 20**0.5 and 0.5 < np.std(shares) / error < 1.6


def test_of_equal_entries_the_first_are_kept() -> None:
    assert merge_task_vectors([torch.ones(2, 4)], "magnitude_prune", 1.0, 0.5).tolist() == [[1.0] * 4, [0.0] * 4]
    small = [torch.tensor([3.0, -1.0])]
    assert merge_task_vectors(small, "ties", 1.0, 0.3).tolist() == [0.0, 0.0]
    assert merge_task_vectors(small, "ties", 1.0, 0.3, convention="mergekit").tolist() == [3.0, 0.0]


def test_weights_and_vectors_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="got 2 weights for 3 task vectors"):
        merge_task_vectors(vectors(), weight=(0.5, 0.5))
    with pytest.raises(ValueError, match="task vector 1: expected finite"):
        merge_task_vectors([vectors()[0], vectors()[1] / 0])
    with pytest.raises(ValueError, match="convention is 'mine'"):
        merge_task_vectors(vectors(), convention="mine")  # type: ignore[arg-type]
