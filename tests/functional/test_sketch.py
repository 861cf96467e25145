"""The sketch's bounds against the exact Hessian, on spectra of fast and slow decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpa_lightning.functional import dominant_subspace
from hpa_lightning.functional.shrinking import shrink_rows
from hpa_lightning.functional.sketch import InputSketch

RANK, COLUMNS, TOKENS = 24, 100, 700
SUMMED = 25  # the rank from which so few columns are summed whole

POSITIONS = torch.arange(1, COLUMNS + 1).double()

SPECTRA = {
    "fast": torch.exp(-POSITIONS / 8),
    "slow": POSITIONS**-0.5,
    "flat": torch.ones(COLUMNS).double(),
    "outliers": torch.cat([torch.tensor([1e6, 1e4]).double(), POSITIONS[:-2] ** -0.7]),
}


def inputs(kind: str, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=rng, dtype=torch.float64)).Q
    return (torch.randn(TOKENS, COLUMNS, generator=rng, dtype=torch.float64) * SPECTRA[kind].sqrt() @ turn.T).float()


def sketched(x: Tensor, *sizes: int, rank: int = RANK) -> InputSketch:
    sketch = InputSketch(COLUMNS, rank)
    for part in x.split(sizes[0] if sizes else 100):
        sketch.update(part)
    return sketch


def gram(x: Tensor) -> Tensor:
    return x.double().T @ x.double()


def check_bounds(sketch: InputSketch, exact: Tensor) -> None:
    rest = torch.linalg.eigvalsh(exact - gram(sketch.rows))
    slack = 1e-6 * float(exact.diagonal().sum())
    assert rest[0] >= -slack and rest[-1] <= sketch.error + slack
    assert sketch.trace == pytest.approx(float(exact.diagonal().sum()), rel=1e-6)
    tail = torch.linalg.eigvalsh(exact).flip(0)
    for k in range(sketch.rank):
        assert sketch.error <= float(tail[k:].sum()) / (sketch.rank + 1 - k) + slack


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("size", [1, 7, 100, TOKENS])
def test_the_bounds_hold(kind: str, size: int) -> None:
    x = inputs(kind)
    if size == 1:
        x = x[:90]
    check_bounds(sketched(x, size), gram(x))
    summed = sketched(x, size, rank=SUMMED)
    check_bounds(summed, gram(x))
    values = torch.linalg.eigvalsh(gram(x)).flip(0)
    slack = 1e-6 * float(values[0])  # float32 products
    assert summed.error == pytest.approx(float(values[SUMMED]), rel=1e-5, abs=slack)
    torch.testing.assert_close(summed.spectrum()[1] + summed.error, values[:SUMMED], rtol=1e-5, atol=slack)
    assert summed.error <= sketched(x, size).error + slack


@pytest.mark.parametrize("kind", SPECTRA)
def test_an_update_does_no_more_to_the_inputs_than_the_bound_says(kind: str) -> None:
    x = inputs(kind)
    sketch = sketched(x)
    for count in (0, 5, RANK):
        basis = sketch.spectrum()[0][:, :count]
        torch.testing.assert_close(basis.T @ basis, torch.eye(count), rtol=0, atol=1e-5)
        free = torch.eye(COLUMNS).double() - basis.double() @ basis.double().T
        worst = float(torch.linalg.eigvalsh(free @ gram(x) @ free)[-1])
        slack = 1e-5 * float(gram(x).diagonal().sum())
        assert worst <= sketch.worst_case(basis) + slack
        # And the bound says something: it is at most what the theorem allows.
        tail = torch.linalg.eigvalsh(gram(x)).flip(0)
        assert sketch.worst_case(basis) <= float(tail[count]) + 2 * float(tail[RANK // 2 :].sum()) / (RANK // 2) + slack


def test_few_tokens_are_kept_as_they_are() -> None:
    x = inputs("slow")[:RANK]
    sketch = sketched(x, 5)
    assert sketch.error == 0.0
    torch.testing.assert_close(gram(sketch.rows), gram(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["fast", "outliers"])
@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_the_basis_is_that_of_the_exact_form(kind: str, energy: float) -> None:
    x = inputs(kind)
    exact, found = dominant_subspace(gram(x), energy), sketched(x).basis(energy)
    assert found.shape[1] == pytest.approx(exact.shape[1], abs=1)
    held = [float((u.double().T @ gram(x) @ u.double()).trace() / gram(x).trace()) for u in (exact, found)]
    assert held[1] >= held[0] - 0.03


def test_a_basis_that_the_sketch_cannot_hold_is_all_of_it_and_says_so() -> None:
    sketch = sketched(inputs("flat"))
    assert sketch.basis(0.99).shape == (COLUMNS, RANK)
    assert sketch.held(RANK) < 0.5
    assert sketch.basis(0.0).shape == (COLUMNS, 0)


@pytest.mark.parametrize("kind", SPECTRA)
def test_merged_sketches_hold_the_sum(kind: str) -> None:
    parts = [inputs(kind, seed) for seed in range(3)]
    weights = [1.0, 0.5, 2.0]
    total = InputSketch(COLUMNS, RANK)
    for part, weight in zip(parts, weights, strict=True):
        one = sketched(part)
        before = one.rows.clone()
        total.merge(one, weight)
        assert torch.equal(one.rows, before)
    assert total.count == 3 * TOKENS
    exact = sum(weight * gram(part) for part, weight in zip(parts, weights, strict=True))
    rest = torch.linalg.eigvalsh(exact - gram(total.rows))
    slack = 1e-6 * float(exact.diagonal().sum())
    assert rest[0] >= -slack and rest[-1] <= total.error + slack
    assert total.trace == pytest.approx(float(exact.diagonal().sum()), rel=1e-6)


def test_padding_is_left_out_and_half_precision_is_read() -> None:
    x = inputs("slow")[:60].reshape(3, 20, COLUMNS).bfloat16()
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1, 12:] = False
    masked, plain = InputSketch(COLUMNS, RANK), InputSketch(COLUMNS, RANK)
    masked.update(x, mask)
    plain.update(x[mask])
    assert torch.equal(masked.rows, plain.rows) and masked.count == 52


def test_a_sketch_travels_through_a_file(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    sketch = sketched(inputs("slow"))
    save_file(sketch.state_dict(), tmp_path / "sketch.safetensors")
    read = InputSketch.from_state(load_file(tmp_path / "sketch.safetensors"))
    assert torch.equal(read.rows, sketch.rows)
    assert (read.error, read.trace, read.count, read.rank) == (sketch.error, sketch.trace, sketch.count, RANK)
    more = inputs("slow", 1)
    for one in (read, sketch):
        one.update(more)
    assert torch.equal(read.rows, sketch.rows)


def test_nothing_seen_and_nothing_there() -> None:
    empty = InputSketch(COLUMNS, RANK)
    assert empty.rows.shape == (0, COLUMNS) and empty.basis(0.9).shape == (COLUMNS, 0)
    assert InputSketch.from_state(empty.state_dict()).rows.shape == (0, COLUMNS)
    empty.update(torch.zeros(50, COLUMNS))
    assert empty.basis(0.9).shape[1] == 0 and empty.error == 0.0
    assert shrink_rows(torch.zeros(5, 3), 2)[1] == 0.0


def test_bad_input_is_named() -> None:
    for columns, rank in ((3, 0), (3, 4), (0, 0), (3.0, 1)):
        with pytest.raises(ValueError, match="rank <= columns"):
            InputSketch(columns, rank)
    sketch = InputSketch(3, 2)
    with pytest.raises(ValueError, match=r"inputs.*\(\.\.\., 3\)"):
        sketch.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="mask"):
        sketch.update(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="finite"):
        sketch.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="3 columns"):
        sketch.merge(InputSketch(4, 2))
    with pytest.raises(ValueError, match="rows"):
        InputSketch.from_state({"rows": torch.ones(2)})


@pytest.mark.parametrize("kind", SPECTRA)
def test_half_precision_rows_keep_the_upper_bound(kind: str) -> None:
    x = inputs(kind)
    sketch = sketched(x)
    fine, error = sketch.rows.clone(), sketch.error
    sketch.round_()
    assert sketch.state_dict()["rows"].dtype == torch.bfloat16
    lost = float(torch.linalg.eigvalsh(gram(fine) - gram(sketch.rows))[-1])
    assert sketch.error - error == pytest.approx(lost, rel=1e-6, abs=1e-9 * float(gram(x).trace()))
    slack = 1e-6 * float(gram(x).diagonal().sum())
    assert float(torch.linalg.eigvalsh(gram(x) - gram(sketch.rows))[-1]) <= sketch.error + slack
    before = sketch.error
    sketch.round_()
    assert sketch.error == before
    read = InputSketch.from_state(sketch.state_dict())
    assert torch.equal(read.rows, sketch.rows) and torch.equal(read.diagonal, sketch.diagonal)


def test_the_diagonal_is_exact_through_merging_and_scaling() -> None:
    one, two = sketched(inputs("slow")), sketched(inputs("fast"))
    total = one.scaled(0.5, rank=10)
    total.merge(two, 2.0)
    exact = 0.5 * gram(inputs("slow")) + 2.0 * gram(inputs("fast"))
    torch.testing.assert_close(total.diagonal, exact.diagonal(), rtol=1e-5, atol=1e-5)
    assert total.rank == 10 and len(total.rows) == 10 and one.rank == RANK
    rest = torch.linalg.eigvalsh(exact - gram(total.rows))
    slack = 1e-6 * float(exact.diagonal().sum())
    assert rest[0] >= -slack and rest[-1] <= total.error + slack
