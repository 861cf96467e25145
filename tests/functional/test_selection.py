from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref

from hpa_lightning.functional import balance_coefficient, partition_columns, retained_columns, retention_percent


@st.composite
def focuses(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two focus vectors: continuous, with many ties, or with columns that did not move."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    c = draw(st.integers(1, 30))
    kind = draw(st.sampled_from(["continuous", "ties", "unmoved", "zero", "correlated"]))
    eps, zeta = 10.0 ** rng.uniform(-6, 2, (2, c))
    if kind == "ties":
        eps, zeta = rng.integers(0, 3, (2, c)).astype(float)
    elif kind == "unmoved":
        moved = rng.random(c) < 0.5
        eps, zeta = eps * moved, zeta * moved
    elif kind == "zero":
        eps, zeta = np.zeros((2, c))
    elif kind == "correlated":
        zeta = eps * rng.uniform(0.9, 1.1, c)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.from_numpy(eps).to(dtype), torch.from_numpy(zeta).to(dtype)


percents = st.one_of(st.sampled_from([0.0, 5.0, 50.0, 100.0]), st.floats(0.0, 100.0))


@ref.cases
@given(focus=focuses(), percent=percents)
def test_default_selection_matches_the_reference(focus: tuple[torch.Tensor, torch.Tensor], percent: float) -> None:
    eps, zeta = focus
    expected = ref.retained(
        ref.array(eps),
        ref.array(zeta),
        percent,
        min(2 * percent, 100.0),
        ref.alpha(ref.array(eps), ref.array(zeta)),
    )
    mask = retained_columns(eps, zeta, percent)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected.tolist()
    assert int(mask.sum()) == ref.count(percent, len(eps))


@ref.cases
@given(focus=focuses(), percent=percents, focus_percent=percents, alpha=st.floats(0.0, 1.0))
def test_explicit_selection_matches_the_reference(
    focus: tuple[torch.Tensor, torch.Tensor], percent: float, focus_percent: float, alpha: float
) -> None:
    eps, zeta = focus
    mask = retained_columns(eps, zeta, percent, focus_percent, alpha)
    expected = ref.retained(ref.array(eps), ref.array(zeta), percent, focus_percent, alpha)
    assert mask.tolist() == expected.tolist()
    safety_focused, task_focused = partition_columns(eps, zeta, focus_percent)
    for focused, values in ((safety_focused, eps), (task_focused, zeta)):
        wanted = ref.top(ref.array(values), list(range(len(eps))), ref.count(focus_percent, len(eps)))
        assert sorted(wanted) == focused.nonzero().flatten().tolist()
    assert not (mask & ~safety_focused).any()


@ref.cases
@given(focus=focuses())
def test_balance_matches_the_reference(focus: tuple[torch.Tensor, torch.Tensor]) -> None:
    eps, zeta = focus
    assert balance_coefficient(eps, zeta) == pytest.approx(ref.alpha(ref.array(eps), ref.array(zeta)), rel=1e-9)
    assert 0.4 <= balance_coefficient(eps, zeta) <= 0.8


def test_balance_equals_the_ratio_of_inverse_hessians() -> None:
    # Where every column moved, m is the mean of log([H_t^-1]_jj / [H_s^-1]_jj) whatever the update.
    safety, task = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 4.0, 0.5])
    energy = torch.tensor([3.0, 0.1, 7.0])
    mean = float((task / safety).log().mean())
    expected = 0.4 + 0.4 * (1 + np.tanh(mean)) / 2
    assert balance_coefficient(energy / safety, energy / task) == pytest.approx(expected, rel=1e-6)


def test_ties_go_to_the_lower_column_on_long_vectors() -> None:
    # Long enough that an unstable sort would shuffle equal values.
    mask = retained_columns(torch.ones(5000), torch.ones(5000), 10.0)
    assert mask[:500].all()
    assert not mask[500:].any()


def test_unshared_columns_come_before_shared_ones() -> None:
    eps = torch.tensor([9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 0.0, 0.0])
    zeta = torch.tensor([9.0, 0.0, 8.0, 0.0, 7.0, 6.0, 0.0, 0.0])
    # Safety-focused 0 to 3, task-focused 0, 2, 4, 5; shared 0 and 2; phi with alpha = 1: 0 and -1.
    assert retained_columns(eps, zeta, 37.5, 50.0, 1.0).nonzero().flatten().tolist() == [0, 1, 3]
    assert retained_columns(eps, zeta, 12.5, 50.0, 1.0).nonzero().flatten().tolist() == [1]


def test_retention_falls_linearly_from_the_first_block() -> None:
    percents = [retention_percent(layer, 32) for layer in range(1, 33)]
    assert percents == pytest.approx([15 - layer / 32 * 10 for layer in range(1, 33)])
    assert retention_percent(3, 3, 2.0, 8.0) == pytest.approx(2.0)
    assert retention_percent(1, 1, 7.0, 7.0) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "layer"),
        ((5, 4), "layer.*5 of 4"),
        ((1.5, 4), "layer"),
        ((1, 4, -1.0, 15.0), "p_min"),
        ((1, 4, 5.0, 101.0), "p_max"),
        ((1, 4, 20.0, 15.0), "p_min <= p_max"),
        ((1, 4, float("nan"), 15.0), "p_min"),
    ],
)
def test_retention_names_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retention_percent(*arguments)


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("eps", "zeta", "options", "message"),
    [
        (torch.ones(2, 3), ONES, {}, r"safety_focus.*\(c,\)"),
        (ONES, torch.ones(4), {}, r"task_focus.*\(3,\).*\(4,\)"),
        (ONES * float("nan"), ONES, {}, "safety_focus.*finite"),
        (ONES, -ONES, {}, "task_focus.*>= 0"),
        (ONES, ONES, {"percent": 101.0}, "percent"),
        (ONES, ONES, {"percent": -1.0}, "percent"),
        (ONES, ONES, {"focus_percent": 200.0}, "focus_percent"),
        (ONES, ONES, {"alpha": float("inf")}, "alpha"),
    ],
)
def test_selection_names_bad_input(eps: torch.Tensor, zeta: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retained_columns(eps, zeta, **{"percent": 10.0, **options})


def test_balance_names_a_reversed_range() -> None:
    with pytest.raises(ValueError, match="alpha_min <= alpha_max"):
        balance_coefficient(ONES, ONES, 0.8, 0.4)
