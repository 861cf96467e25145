"""Algorithm 1 of one layer against the slow reference, dense and through an adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref

from hpa_lightning.functional import (
    LoraUpdate,
    RetentionSettings,
    focus_partition,
    freeze_columns_,
    harmonious_fusion,
    lora_update,
)

SETTINGS = RetentionSettings(p_min=20.0, p_max=50.0)
PLACE = {"layer": 2, "num_layers": 3, "settings": SETTINGS}


def layer(seed: int, r: int, c: int) -> tuple[torch.Tensor, LoraUpdate, torch.Tensor, torch.Tensor]:
    """A weight, an adapter on it, and the diagonals of two inverse Hessians."""
    generator = torch.Generator().manual_seed(seed)
    old, a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((r, c), (2, c), (r, 2)))
    diagonals = (torch.rand(c, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    return old, LoraUpdate(a, b, 0.5), *diagonals


def algorithm_1(
    old: np.ndarray, new: np.ndarray, safety: np.ndarray, task: np.ndarray, orthogonal: bool
) -> tuple[np.ndarray, np.ndarray]:
    eps, zeta = (ref.focus(new - old, diagonal) for diagonal in (safety, task))
    percent = 50.0 - 2 / 3 * 30.0
    mask = ref.retained(eps, zeta, percent, 2 * percent, ref.alpha(eps, zeta))
    return ref.fused(old, new, mask, orthogonal), mask


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(2, 9),
    c=st.integers(2, 12),
    adapter=st.booleans(),
    in_place=st.booleans(),
    orthogonal=st.booleans(),
)
def test_matches_the_reference(seed: int, r: int, c: int, adapter: bool, in_place: bool, orthogonal: bool) -> None:
    old, update, safety, task = layer(seed, r, c)
    new = old + update.scaling * update.lora_b @ update.lora_a
    expected, mask = algorithm_1(*map(ref.array, (old, new, safety, task)), orthogonal)
    weight, after = old.clone(), update if adapter else new.clone()
    fused, audit = harmonious_fusion(weight, after, safety, task, **PLACE, orthogonal=orthogonal, in_place=in_place)
    ref.close(fused, expected)
    assert torch.equal(fused[:, torch.from_numpy(mask).bool()], old[:, torch.from_numpy(mask).bool()])
    assert (audit["columns"], audit["retained"]) == (c, mask.sum())
    trained = weight if adapter else after
    assert (fused is trained) == in_place
    assert torch.equal(weight, old) or (in_place and adapter)
    shown = ref.scale(ref.array(old), ref.array(new)) if orthogonal else 0.0
    assert audit["projection_scale"] == pytest.approx(shown, rel=1e-4, abs=1e-6)


def test_what_all_processes_hold_is_fused() -> None:
    old, update, safety, task = layer(0, 4, 6)
    mine, _ = focus_partition(update, safety, task, **PLACE)
    theirs = ~mine
    fused, _ = harmonious_fusion(old, update, safety, task, **PLACE, broadcast=lambda mask: ~mask)
    assert torch.equal(fused[:, theirs], old[:, theirs]) and not torch.equal(fused[:, mine], old[:, mine])


def test_random_columns_come_from_the_generator_alone() -> None:
    _, update, safety, task = layer(0, 4, 20)
    settings = RetentionSettings(p_min=30.0, p_max=30.0, rule="random")
    state = torch.random.get_rng_state()
    masks = [
        focus_partition(update, safety, task, 1, 1, settings, torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2]) and masks[0].sum() == 6
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="rule 'random' draws columns by a generator; got none"):
        focus_partition(update, safety, task, 1, 1, settings)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "dense"])
def test_nothing_is_written_where_something_is_wrong(adapter: bool) -> None:
    old, update, safety, task = layer(0, 4, 6)
    new = old + 1.0
    kept = old.clone(), new.clone()
    for diagonal in (-task, task * float("nan"), task[1:]):
        with pytest.raises(ValueError, match="inverse_diagonal: expected"):
            harmonious_fusion(old, update if adapter else new, safety, diagonal, **PLACE, in_place=True)
    assert torch.equal(old, kept[0]) and torch.equal(new, kept[1])


@pytest.mark.parametrize("dtype", ref.FLOATS)
def test_frozen_columns_are_the_old_ones_bit_for_bit(dtype: torch.dtype) -> None:
    old, update, safety, task = layer(3, 5, 8)
    old, a = old.to(dtype), update.lora_a.to(dtype)
    mask, _ = focus_partition(update, safety, task, **PLACE)
    moved = freeze_columns_(old + 1, old, mask)
    assert torch.equal(moved[:, mask], old[:, mask]) and torch.equal(moved[:, ~mask], (old + 1)[:, ~mask])
    product = lora_update(freeze_columns_(a, None, mask), update.lora_b.to(dtype))
    assert not product[:, mask].any() and product[:, ~mask].all()


def test_shares_in_the_place_of_percent_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    RetentionSettings(p_min=0.05, p_max=1.0)
    RetentionSettings(p_min=0.0, p_max=0.0)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"0.05, 0.15: percent, not shares, .* at most 0.15 % .* write p_max=15"):
        RetentionSettings(p_min=0.05, p_max=0.15)
