"""Budgets of what an update does to inputs, against dense float64 algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from hpa_lightning.functional import (
    InputSketch,
    adapter_gram,
    damp_directions_,
    directions_that_tell,
    energies_along,
    input_spectrum,
    leave_directions,
    left_factors,
    nearest_in_budget,
    output_energy,
)
from hpa_lightning.functional.numerics import checks


def case(seed: int, c: int = 7, r: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Inputs whose spectrum decays, and an update."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(12, c)) * np.geomspace(3, 0.05, c) @ draw.normal(size=(c, c)), draw.normal(size=(r, c))


def action(inputs: np.ndarray, update: np.ndarray) -> float:
    return float(np.linalg.norm(inputs @ update.T) ** 2)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-6, 2.0))
def test_the_nearest_update_within_the_budget(seed: int, share: float) -> None:
    inputs, update = case(seed)
    budget = share * action(inputs, update)
    spectrum = input_spectrum(torch.tensor(inputs.T @ inputs))
    along = energies_along(torch.tensor(update), spectrum.directions)
    factors = nearest_in_budget(spectrum.energies[None], along[None], row(budget))[0]
    found = torch.tensor(update)
    damp_directions_(found, None, spectrum.directions, factors)

    hessian = inputs.T @ inputs

    def of(mu: float) -> np.ndarray:
        return np.linalg.solve(np.eye(len(hessian)) + mu * hessian, update.T).T

    mu = 0.0 if share >= 1 else brentq(lambda x: action(inputs, of(x)) / budget - 1, 0.0, 1e12, xtol=1e-14, rtol=1e-13)
    np.testing.assert_allclose(found.numpy(), of(mu), rtol=0, atol=2e-5 * np.abs(update).max())
    assert action(inputs, found.numpy()) <= budget * (1 + 1e-5) + 1e-12


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-4, 2.0))
def test_the_fewest_directions_that_bring_it_into_the_budget(seed: int, share: float) -> None:
    inputs, update = case(seed)
    budget = share * action(inputs, update)
    spectrum = input_spectrum(torch.tensor(inputs.T @ inputs))
    along = energies_along(torch.tensor(update), spectrum.directions)
    layer = (spectrum.energies[None], along[None], row(budget))
    count = leave_directions(*layer, torch.tensor([0]))
    vectors = np.linalg.eigh(inputs.T @ inputs)[1][:, ::-1]
    rest = [action(inputs, update - update @ vectors[:, :k] @ vectors[:, :k].T) for k in range(len(vectors) + 1)]
    expected = next(k for k, one in enumerate(rest) if one <= budget * (1 + 1e-9) + 1e-12)
    if abs(rest[expected] - budget) > 1e-5 * budget and (expected == 0 or rest[expected - 1] > budget * (1 + 1e-5)):
        assert int(count) == expected
    assert int(leave_directions(*layer, torch.tensor([5]))) == max(int(count), 5), "directions come back"
    found = torch.tensor(update)
    damp_directions_(found, None, spectrum.directions, left_factors(*layer, count)[0])
    assert action(inputs, found.numpy()) <= budget * (1 + 1e-5) + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(1e-3, 1.0))
def test_a_sketch_bounds_what_an_update_does_to_all_inputs(seed: int, rank: int, share: float) -> None:
    inputs, update = case(seed)
    sketch = InputSketch(7, rank)
    for part in np.array_split(inputs, 4):
        sketch.update(torch.tensor(part, dtype=torch.float32))
    spectrum = input_spectrum(sketch, certain=True)
    along = energies_along(torch.tensor(update), spectrum.directions)
    bound = float((spectrum.energies * along).sum())
    assert action(inputs, update) <= bound * (1 + 1e-5)
    budget = share * bound
    for factors in (
        nearest_in_budget(spectrum.energies[None], along[None], row(budget)),
        left_factors(
            *(layer := (spectrum.energies[None], along[None], row(budget))), leave_directions(*layer, torch.tensor([0]))
        ),
    ):
        found = torch.tensor(update)
        damp_directions_(found, None, spectrum.directions, factors[0])
        assert action(inputs, found.numpy()) <= budget * (1 + 1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_the_energies_of_a_sketch_are_the_inputs_in_all(seed: int, rank: int) -> None:
    inputs, weight = case(seed)
    sketch = InputSketch(7, rank)
    for part in np.array_split(inputs, 4):
        sketch.update(torch.tensor(part, dtype=torch.float32))
    spectrum, most = input_spectrum(sketch), input_spectrum(sketch, certain=True)
    outside = 7 - spectrum.directions.shape[1]
    total = float(spectrum.energies[:-1].sum()) + outside * float(spectrum.energies[-1])
    assert total == pytest.approx(float((inputs**2).sum()), rel=1e-5)
    assert bool((spectrum.energies <= most.energies + 1e-6 * total).all()), "more than there can be"
    # Summed over all directions, as a weight of orthogonal rows does it, nothing is estimated any more.
    every = torch.tensor(np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))[0])
    assert output_energy(every, sketch) == pytest.approx(action(inputs, every.numpy()), rel=1e-4)
    if rank == 7:
        assert output_energy(torch.tensor(weight), sketch) == pytest.approx(action(inputs, weight), rel=1e-4)


def test_what_a_sketch_lost_is_estimated_and_not_taken_at_its_worst() -> None:
    """Of slowly decaying inputs the upper bound counts several times what there is, the estimate nearly that."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(2000, 96)) * np.geomspace(1, 0.1, 96)
    sketch = InputSketch(96, 24)
    for part in np.array_split(inputs, 50):
        sketch.update(torch.tensor(part, dtype=torch.float32))
    update = draw.normal(size=(8, 96))
    for leave in (0, 12, 24):
        vectors = input_spectrum(sketch).directions.double().numpy()[:, :leave]
        rest = update - update @ vectors @ vectors.T
        along = energies_along(torch.tensor(rest), input_spectrum(sketch).directions)
        found, most = (float((input_spectrum(sketch, sure).energies * along).sum()) for sure in (False, True))
        assert found == pytest.approx(action(inputs, rest), rel=0.25)
        assert most > action(inputs, rest) * (1.2 if leave == 0 else 2.0)


def test_lora_and_rows_of_an_update_count_as_the_whole_one() -> None:
    inputs, _ = case(1)
    spectrum = input_spectrum(torch.tensor(inputs.T @ inputs))
    draw = torch.Generator().manual_seed(0)
    b, a = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((5, 2), (2, 7)))
    whole = energies_along(0.5 * b @ a, spectrum.directions[:, :3])
    torch.testing.assert_close(energies_along(a, spectrum.directions[:, :3], 0.25 * b.T @ b), whole, rtol=1e-5, atol=0)
    parts = [energies_along(0.5 * rows @ a, spectrum.directions[:, :3]) for rows in b.split(2)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)
    assert energies_along(a[:0], spectrum.directions).tolist() == [0.0] * 8
    assert energies_along(a, spectrum.directions[:, :0]).tolist() == [pytest.approx(float(a.square().sum()))]


def test_a_weight_counts_from_its_origin_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, update = case(3, r=11)
    spectrum = input_spectrum(torch.tensor(inputs.T @ inputs))
    origin = torch.randn(11, 7, generator=torch.Generator().manual_seed(0)).double()
    weight, directions = origin + torch.tensor(update), spectrum.directions[:, :4]
    monkeypatch.setattr(checks, "CACHE_ENTRIES", 3 * 7)  # parts of three rows
    found = energies_along(weight, directions, origin=origin)
    wide = directions.double().numpy()
    along, whole = np.square(update @ wide).sum(0), np.square(update).sum()
    np.testing.assert_allclose(found.numpy(), [*along, whole - along.sum()], rtol=1e-5)
    factors = row(0.0, 0.5, 1.0, 0.25, 0.5)
    damp_directions_(weight, origin, directions, factors)
    kept = 0.5 * np.eye(7) + wide @ np.diag(factors[:-1].numpy() - 0.5) @ wide.T
    np.testing.assert_allclose((weight - origin).numpy(), update @ kept, rtol=0, atol=1e-5)


def test_the_gram_of_an_adapter() -> None:
    b = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    expected = 4.0 * b.double().T @ b.double()
    torch.testing.assert_close(adapter_gram(b, 2.0), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(adapter_gram(b[:2], 2.0) + adapter_gram(b[2:], 2.0), expected, rtol=1e-6, atol=1e-6)
    assert adapter_gram(b[:0], 2.0).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="lora_b"):
        adapter_gram(b[0], 2.0)
    with pytest.raises(ValueError, match="gram and origin"):
        energies_along(b, torch.eye(2), torch.eye(5), origin=b)


def test_an_update_within_its_budget_stays_bit_for_bit() -> None:
    inputs, update = case(2)
    spectrum = input_spectrum(torch.tensor(inputs.T @ inputs))
    rows = torch.tensor(update, dtype=torch.float32)
    along = energies_along(rows, spectrum.directions)
    factors = nearest_in_budget(spectrum.energies[None], along[None], row(1e9))[0]
    after = rows.clone()
    damp_directions_(after, None, spectrum.directions, factors)
    assert torch.equal(after, rows)


def test_no_budget_leaves_nothing_where_inputs_are() -> None:
    energies, along = row(3.0, 2.0, 0.0)[None], row(1.0, 1.0, 5.0)[None]
    assert nearest_in_budget(energies, along, row(0.0)).tolist() == [[0.0, 0.0, 1.0]]
    counts = leave_directions(energies, along, row(0.0), torch.tensor([0]))
    assert left_factors(energies, along, row(0.0), counts).tolist() == [[0.0, 0.0, 1.0]]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="square matrix"):
        input_spectrum(torch.ones(2, 3))
    with pytest.raises(ValueError, match="directions"):
        energies_along(torch.ones(2, 3), torch.ones(4, 1))
    with pytest.raises(ValueError, match="factors"):
        damp_directions_(torch.ones(2, 3), None, torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match="budgets"):
        nearest_in_budget(torch.ones(1, 2), torch.ones(1, 2), torch.ones(2))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.5, 1e4))
def test_so_many_directions_tell_that_an_update_is_within_its_budget(seed: int, room: float) -> None:
    draw = np.random.default_rng(seed)
    energies = np.append(np.sort(draw.exponential(size=9) ** 3)[::-1], draw.exponential() * draw.integers(0, 2))
    along = draw.exponential(size=10) * draw.integers(0, 2, size=10)
    action = float(energies @ along)
    budget = room * action

    def bound(count: int) -> float:
        rest = energies[count:].max() if count < 10 else 0.0
        return float(energies[:count] @ along[:count] + rest * along[count:].sum())

    found = int(directions_that_tell(row(*energies)[None], row(*along)[None], row(budget))[0])
    limit = np.sqrt(action * budget)
    if action > budget:
        assert found == 10
    elif found < 10:
        assert bound(found) <= limit * (1 + 1e-9) <= budget * (1 + 1e-8)
        assert found == 0 or bound(found - 1) > limit * (1 - 1e-9)
    else:
        assert all(bound(count) > limit * (1 - 1e-9) for count in range(10))
