from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import hpa_reference as ref
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hpa_lightning.functional import (
    LoraTensors,
    UpdateProjection,
    project_lora_,
    project_lora_updates_,
    project_update_,
    restore_columns_,
    zero_columns_,
)
from hpa_lightning.functional.numerics import checks
from hpa_lightning.functional.numerics.rounding import rounding_slots

BOUND = 1e-6


def cosine(weight: torch.Tensor, weight_prev: torch.Tensor) -> float:
    """|<D, W_prev>| / (||D|| ||W_prev||) of the stored values, in float64."""
    old = ref.array(weight_prev)
    delta = ref.array(weight) - old
    norms = np.linalg.norm(delta) * np.linalg.norm(old)
    return abs((delta * old).sum()) / norms if norms > 0 else 0.0


def make(
    seed: int, r: int, c: int, size: float, dtype: torch.dtype, share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    old = torch.from_numpy(rng.standard_normal((r, c))).to(dtype)
    new = (old.double() + torch.from_numpy(size * rng.standard_normal((r, c)))).to(dtype)
    return new, old, torch.from_numpy(rng.random(c) < share)


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 24),
    c=st.integers(1, 24),
    size=st.sampled_from([0.0, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, 100.0]),
    dtype=st.sampled_from(ref.FLOATS),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    kind=st.sampled_from(["random", "parallel", "ones", "zero weight", "zero free", "sparse"]),
)
def test_guarantees_hold_for_the_stored_weight(
    seed: int, r: int, c: int, size: float, dtype: torch.dtype, share: float, kind: str
) -> None:
    new, old, mask = make(seed, r, c, size, dtype, share)
    if kind == "parallel":
        new = ((1.0 + size) * old.double()).to(dtype)
    elif kind == "ones":
        new, old = new - old + 1.0, torch.ones_like(old)
    elif kind == "zero weight":
        old = torch.zeros_like(old)
    elif kind == "zero free":
        old[:, ~mask] = 0.0
    elif kind == "sparse":
        new[old.abs() < 1.0] = 0.0
        old[old.abs() < 1.0] = 0.0
    before = new.clone()
    project_update_(new, old, mask)
    assert torch.isfinite(new).all()
    assert torch.equal(new[:, mask], old[:, mask])
    assert cosine(new, old) <= BOUND
    if kind in ("zero weight", "zero free"):
        assert torch.equal(new[:, ~mask], before[:, ~mask])
    if size == 0.0 and kind in ("random", "parallel"):
        assert torch.equal(new, old)


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_small_updates_survive_the_repair(dtype: torch.dtype, size: float) -> None:
    new, old, mask = make(0, 256, 192, size, dtype, 0.1)
    delta = (ref.array(new) - ref.array(old)) * ~mask.numpy()
    free = ref.array(old) * ~mask.numpy()
    exact = delta - (delta * free).sum() / (free**2).sum() * free
    project_update_(new, old, mask)
    assert cosine(new, old) <= BOUND
    moved = ref.array(new) - ref.array(old)
    # Off the exact projection by rounding: half an ulp everywhere, and the repair on a few entries.
    ulp = torch.finfo(dtype).eps * np.linalg.norm(free)
    assert np.linalg.norm(moved - exact) <= 0.5 * ulp + 0.05 * np.linalg.norm(exact)
    if size > torch.finfo(dtype).eps:
        assert np.linalg.norm(moved) > 0.5 * np.linalg.norm(exact)


def test_a_plain_projection_would_miss_the_bound() -> None:
    # The reason for the repair: projected exactly, then rounded once, the stored update is not orthogonal.
    new, old, _ = make(1, 64, 64, 1e-6, torch.float32, 0.0)
    w, d = old.double(), new.double() - old.double()
    plain = (w + d - (d * w).sum() / w.square().sum() * w).float()
    assert cosine(plain, old) > BOUND
    project_update_(new, old)
    assert cosine(new, old) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bound_holds_after_every_adamw_step(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    old = (0.05 * torch.randn(48, 40, generator=generator)).to(dtype)
    target = (0.05 * torch.randn(48, 40, generator=generator)).to(dtype)
    mask = torch.arange(40) % 7 == 0
    weight = torch.nn.Parameter(old.clone())
    optimizer = torch.optim.AdamW([weight], lr=2e-3, weight_decay=0.1)
    projection = UpdateProjection([old], [mask])
    losses = []
    for _ in range(40):
        loss = (weight.float() - target.float()).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        projection([weight])
        losses.append(loss.item())
        assert torch.equal(weight[:, mask], old[:, mask])
        assert cosine(weight, old) <= BOUND
    assert losses[-1] < 0.8 * losses[0]


def test_removed_share_is_the_free_columns_projection_scale() -> None:
    new, old, mask = make(2, 8, 6, 0.3, torch.float64, 0.4)
    free = ref.array(old) * ~mask.numpy()
    expected = ((ref.array(new) - ref.array(old)) * free).sum() / (free**2).sum()
    assert float(project_update_(new, old, mask)) == pytest.approx(expected, rel=1e-9)


def test_divergence_stays_visible() -> None:
    new, old, _ = make(3, 8, 6, 0.3, torch.float32, 0.0)
    new[0, 0] = float("nan")
    project_update_(new, old)
    assert torch.isnan(new).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layers_together_equal_layers_alone(dtype: torch.dtype) -> None:
    layers = [make(seed, r, c, 1e-3, dtype, 0.2) for seed, (r, c) in enumerate([(24, 32), (32, 24), (8, 8), (24, 32)])]
    alone = [new.clone() for new, _, _ in layers]
    shares = [project_update_(weight, old, mask) for weight, (_, old, mask) in zip(alone, layers, strict=True)]
    together = UpdateProjection([old for _, old, _ in layers], [mask for *_, mask in layers])
    assert torch.equal(together([new for new, _, _ in layers]), torch.stack(shares))
    assert all(torch.equal(new, weight) for weight, (new, _, _) in zip(alone, layers, strict=True))

    rng = torch.Generator().manual_seed(0)
    shapes = [(24, 4, 32), (16, 2, 24)]
    adapters = [[torch.randn(size, generator=rng).to(dtype) for size in ((r, q), (q, c), (r, c))] for r, q, c in shapes]
    alone = [b.clone() for b, _, _ in adapters]
    for b, (_, a, base) in zip(alone, adapters, strict=True):
        project_lora_(b, a, base)
    project_lora_updates_([LoraTensors(*tensors) for tensors in adapters])
    assert all(torch.equal(b, tensors[0]) for b, tensors in zip(alone, adapters, strict=True))


class Shards:
    """Two processes' sums, computed one after the other: the first pass finds every rank's terms."""

    def __init__(self) -> None:
        self.terms: list[list[torch.Tensor]] = [[], []]
        self.calls = 0

    def reducer(self, rank: int, known: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        count = iter(range(100))

        def reduce(sums: torch.Tensor) -> torch.Tensor:
            call = next(count)
            self.calls = max(self.calls, call + 1)
            if not known:
                del self.terms[rank][call:]
                self.terms[rank].append(sums.clone())
            others = self.terms[1 - rank]
            return sums + others[call] if call < len(others) else sums

        return reduce


def in_shards(run: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]) -> tuple[list, int]:
    """What `run(rank, reduce)` returns on both ranks once every sum is right, and how often each summed."""
    shards = Shards()
    for _ in range(4):  # each round makes one more sum right: it depends on the ones before
        for rank in range(2):
            run(rank, shards.reducer(rank, known=False))
    return [run(rank, shards.reducer(rank, known=True)) for rank in range(2)], shards.calls


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_over_processes_equal_whole_weights(dtype: torch.dtype, size: float) -> None:
    new, old, mask = make(7, 64, 48, size, dtype, 0.2)
    whole = new.clone()
    project_update_(whole, old, mask)
    rows = [slice(0, 40), slice(40, 64)]

    def run(rank: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        weight = new[rows[rank]].clone()
        UpdateProjection([old[rows[rank]]], [mask], reduce)([weight])
        return weight

    parts, calls = in_shards(run)
    joined = torch.cat(parts)
    assert calls == 3  # once per task, and twice at every step
    assert cosine(joined, old) <= BOUND
    assert torch.equal(joined[:, mask], old[:, mask])
    # The repair of rounding moves other entries, by a few ulp.
    moved, exact = joined.double() - old.double(), whole.double() - old.double()
    assert (moved - exact).norm() <= 0.05 * exact.norm() + 0.2 * torch.finfo(dtype).eps * old.double().norm()

    rng = torch.Generator().manual_seed(1)
    b, a = (torch.randn(shape, generator=rng).to(dtype) for shape in ((64, 8), (8, 48)))
    alone = b.clone()
    project_lora_(alone, a, old)

    def run_lora(rank: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        own = b[rows[rank]].clone()
        project_lora_updates_([LoraTensors(own, a, old[rows[rank]])], reduce)
        return own

    parts, calls = in_shards(run_lora)
    assert calls == 1
    joined = torch.cat(parts)
    update = ref.array(joined) @ ref.array(a)
    norms = np.linalg.norm(update) * np.linalg.norm(ref.array(old))
    assert abs((update * ref.array(old)).sum()) <= BOUND * norms
    apart = 0.01 if dtype == torch.bfloat16 else 1e-6  # again the repair, which an adapter this small needs
    assert (joined.double() - alone.double()).norm() <= apart * alone.double().norm()


def test_transposed_storage_and_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old, mask = make(4, 33, 20, 1e-4, torch.float32, 0.2)
    turned, expected = new.T.contiguous().T, new.clone()
    project_update_(expected, old, mask)
    monkeypatch.setattr(checks, "BLOCK_ENTRIES", 60)
    project_update_(turned, old, mask)
    assert cosine(turned, old) <= BOUND
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-6)


def test_slots_are_distinct_free_and_reusable() -> None:
    _, old, mask = make(5, 40, 30, 0.0, torch.float32, 0.5)
    slots = rounding_slots(old, mask)
    rows, columns, direction = slots.rows[0], slots.columns[0], slots.direction[0]
    places = list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(set(places)) == len(places)
    usable = direction != 0
    assert usable.any()
    assert not mask[columns[usable]].any()
    assert torch.equal(direction[usable], old[rows, columns].double()[usable])


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 16),
    c=st.integers(1, 16),
    q=st.integers(1, 6),
    size=st.sampled_from([0.0, 1e-6, 1.0]),
    kind=st.sampled_from(["random", "same sign", "parallel", "zero base", "frozen columns"]),
    base_dtype=st.sampled_from(ref.FLOATS),
)
def test_lora_update_is_orthogonal_to_the_base(
    seed: int, r: int, c: int, q: int, size: float, kind: str, base_dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(rng.standard_normal((r, c))).to(base_dtype)
    a, b = (torch.from_numpy(rng.standard_normal(shape)).float() for shape in ((q, c), (r, q)))
    if kind == "same sign":
        base, a = base.abs(), a.abs()
    elif kind == "parallel":
        b = (base.double() @ a.double().T).float()
    elif kind == "zero base":
        base.zero_()
    elif kind == "frozen columns":
        a[:, rng.random(c) < 0.5] = 0.0
    b *= size
    before, a_before, base_before = b.clone(), a.clone(), base.clone()
    project_lora_(b, a, base)
    assert torch.equal(a, a_before)
    assert torch.equal(base, base_before)
    w, update = ref.array(base), ref.array(b) @ ref.array(a)
    assert abs((update * w).sum()) <= BOUND * np.linalg.norm(update) * np.linalg.norm(w) + 1e-300
    direction = w @ ref.array(a).T
    norm = (direction**2).sum()
    exact = ref.array(before) - ((ref.array(before) * direction).sum() / norm if norm else 0.0) * direction
    # The update, not B: where only B A = 0 is orthogonal, B may become 0.
    terms = np.abs(ref.array(before)) @ np.abs(ref.array(a))
    assert np.abs(update - exact @ ref.array(a)).max() <= 1e-5 * max(terms.max(), 1e-30)
    if kind == "zero base" or size == 0.0:
        assert torch.equal(b, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(5))
def test_half_precision_adapters_meet_the_bound(dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, a, b = (torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((128, 96), (8, 96), (128, 8)))
    before = b.clone()
    project_lora_(b, a, base)
    update = ref.array(b) @ ref.array(a)
    norms = np.linalg.norm(update) * np.linalg.norm(ref.array(base))
    assert abs((update * ref.array(base)).sum()) <= BOUND * norms
    direction = ref.array(base) @ ref.array(a).T
    exact = ref.array(before) - (ref.array(before) * direction).sum() / (direction**2).sum() * direction
    assert np.linalg.norm(ref.array(b) - exact) <= 0.01 * np.linalg.norm(exact)


@ref.cases
@given(
    seed=st.integers(0, 2**31),
    r=st.integers(1, 8),
    c=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from(ref.FLOATS),
)
def test_columns_are_restored_and_zeroed_bit_for_bit(
    seed: int, r: int, c: int, share: float, dtype: torch.dtype
) -> None:
    new, old, mask = make(seed, r, c, 1.0, dtype, share)
    restored = restore_columns_(new.clone(), old, mask)
    assert torch.equal(restored[:, mask], old[:, mask])
    assert torch.equal(restored[:, ~mask], new[:, ~mask])
    new[0, 0] = float("nan")
    zeroed = zero_columns_(new.clone(), mask)
    assert (zeroed[:, mask] == 0).all()
    assert torch.equal(zeroed[:, ~mask].nan_to_num(7.0), new[:, ~mask].nan_to_num(7.0))


def per_step(device: str) -> None:
    weight, old = torch.randn(32, 24, device=device), torch.randn(32, 24, device=device)
    mask = torch.zeros(24, dtype=torch.bool, device=device)
    other, wide = torch.randn(24, 32, device=device), torch.randn(8, 24, device=device)
    projection = UpdateProjection([old, other, wide], [mask, None, None], reduce=lambda sums: sums + sums)
    projection([weight, other.clone(), wide.clone()])
    project_update_(weight, old)
    restore_columns_(weight, old, mask)
    zero_columns_(weight, mask)
    for dtype in (torch.float32, torch.bfloat16):
        b, a = torch.randn(32, 4, device=device, dtype=dtype), torch.randn(4, 24, device=device, dtype=dtype)
        project_lora_(b, a, old)


def test_nothing_reads_a_value_inside_the_optimizer_step() -> None:
    # Fake tensors have no values: .item(), `if tensor` and boolean indexing raise; on CUDA they would wait.
    with FakeTensorMode():
        per_step("cpu")
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_host_synchronisation_on_cuda() -> None:
    per_step("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        per_step("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", ref.FLOATS)
def test_large_weights_whose_products_are_float32(dtype: torch.dtype, size: float, device: str) -> None:
    new, old, mask = (tensor.to(device) for tensor in make(6, 640, 512, size, dtype, 0.1))
    project_update_(new, old, mask)
    assert torch.equal(new[:, mask], old[:, mask])
    assert cosine(new, old) <= BOUND

    rng = torch.Generator().manual_seed(0)
    b, a = (torch.randn(shape, generator=rng).to(device) for shape in ((640, 8), (8, 512)))
    a[:, mask] = 0.0
    b = b + 20.0 * torch.linalg.lstsq(a.T.double(), old.double().T).solution.T.float()  # far from orthogonal
    project_lora_(b, a, old)
    update = ref.array(b) @ ref.array(a)
    norms = np.linalg.norm(update) * np.linalg.norm(ref.array(old))
    assert abs((update * ref.array(old)).sum()) <= 0.1 * BOUND * norms


WEIGHT, MASK = torch.ones(2, 3), torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("weight", "old", "mask", "message"),
    [
        (torch.ones(3, 2), WEIGHT, MASK, r"weight:.*\(2, 3\).*\(3, 2\)"),
        (WEIGHT.bfloat16(), WEIGHT, MASK, "same dtype.*bfloat16.*float32"),
        (WEIGHT, WEIGHT.long(), MASK, "weight_prev.*floating-point"),
        (WEIGHT, WEIGHT, torch.zeros(3), "retained.*boolean"),
        (WEIGHT, WEIGHT, torch.zeros(2, dtype=torch.bool), r"retained.*\(3,\)"),
        (WEIGHT, WEIGHT.to("meta"), MASK, "on meta"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    for function in (project_update_, restore_columns_):
        with pytest.raises(ValueError, match=message):
            function(weight.clone(), old, mask)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"lora_a.*\(q, 3\)"):
        project_lora_(torch.ones(2, 1), torch.ones(1, 2), WEIGHT)
    with pytest.raises(ValueError, match=r"lora_b.*\(2, 1\)"):
        project_lora_(torch.ones(3, 1), torch.ones(1, 3), WEIGHT)
    with pytest.raises(ValueError, match="retained"):
        zero_columns_(torch.ones(2, 4), MASK)
    with pytest.raises(ValueError, match="tensor"):
        zero_columns_(torch.tensor(1.0), MASK)
    with pytest.raises(ValueError, match="retained"):
        rounding_slots(WEIGHT, torch.zeros(2, dtype=torch.bool))
