"""The projection within an optimizer step: many layers, shards, no value read on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import hpa_reference as ref
from support.projected_updates import BOUND, cosine, make
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
