"""The Triton kernels do what PyTorch's operations do: on a GPU, and in Triton's interpreter on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from hpa_lightning.functional import LoraTensors, UpdateProjection, project_lora_updates_
from hpa_lightning.functional.numerics import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_a_kernel = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs CUDA or the interpreter"
)
# The interpreter cuts bfloat16 off, where devices round.
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


def both_ways(monkeypatch: pytest.MonkeyPatch, run: object) -> list[list[Tensor]]:
    """What a function returns with the kernels and without them."""
    results = []
    for kernels in (True, False):
        real = triton_kernels.fits
        calls: list[bool] = []

        def fits(*tensors: Tensor, kernels: bool = kernels, real: object = real, calls: list[bool] = calls) -> bool:
            if not kernels:
                return False
            taken = True if INTERPRETED else real(*tensors)  # type: ignore[operator]
            calls.append(taken)
            return taken

        with monkeypatch.context() as patch:
            patch.setattr(triton_kernels, "fits", fits)
            results.append(run())  # type: ignore[operator]
        assert not kernels or (calls and all(calls))
    return results


@needs_a_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [True, False])
def test_update_projection(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(260, 300), (331, 257), (300, 400)]  # none is a multiple of a kernel's block
    old = [torch.randn(shape, generator=rng).to(dtype).to(DEVICE) for shape in shapes]
    new = [(w + 0.01 * torch.randn(w.shape, generator=rng).to(DEVICE)).to(dtype) for w in old]
    # A column of a matrix: the mask's entries do not lie side by side.
    drawn = [(torch.rand(w.shape[1], 2, generator=rng) < 0.1).to(DEVICE) for w in old]
    masks = [one[:, 0] if masked else None for one in drawn]

    def run() -> list[Tensor]:
        weights = [weight.clone() for weight in new]
        shares = UpdateProjection(old, masks)(weights)
        return [shares, *weights]

    (kernel_shares, *with_kernels), (shares, *without) = both_ways(monkeypatch, run)
    # The shares are differences of float32 sums: their errors are beside what the sums add, not beside themselves.
    torch.testing.assert_close(kernel_shares, shares, rtol=0, atol=1e-7)
    for one, other, before, mask in zip(with_kernels, without, old, masks, strict=True):
        assert (one != other).float().mean() < 0.01
        update, wide = one.double() - before.double(), before.double()
        assert (one.double() - other.double()).norm() <= 0.02 * update.norm()  # the slots take another leftover
        assert abs((update * wide).sum()) <= 1e-6 * update.norm() * wide.norm()
        assert mask is None or torch.equal(one[:, mask], before[:, mask])


@needs_a_kernel
@pytest.mark.parametrize("back", [True, False])
def test_a_weight_goes_back_where_the_flag_says_so(back: bool) -> None:
    old = torch.randn(65, 67, device=DEVICE)
    weight = old + 1.0
    triton_kernels.copy_where_(weight, old, torch.tensor(back, device=DEVICE))
    assert torch.equal(weight, old if back else old + 1.0)


@needs_a_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_projection(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(dtype).to(DEVICE)

    layers = [LoraTensors(normal(256, 8), normal(8, 300), normal(256, 300)) for _ in range(3)]
    layers.append(LoraTensors(normal(64, 8), normal(8, 300), normal(64, 300)))

    def run() -> list[Tensor]:
        factors = [layer.lora_b.clone() for layer in layers]
        project_lora_updates_([LoraTensors(b, *rest) for b, (_, *rest) in zip(factors, layers, strict=True)])
        return factors

    for factors in zip(*both_ways(monkeypatch, run), (layer for layer in layers), strict=True):
        one, other, layer = factors
        assert (one != other).float().mean() < 0.02
        update, wide = one.double() @ layer.lora_a.double(), layer.weight_prev.double()
        assert abs((update * wide).sum()) <= 1e-6 * update.norm() * wide.norm()


@pytest.mark.skipif(
    torch.cuda.is_available() or INTERPRETED or triton_kernels.triton is None, reason="the device does it; or no Triton"
)
def test_in_the_interpreter() -> None:
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
