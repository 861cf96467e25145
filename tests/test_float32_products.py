"""bfloat16 by way of float32: what a processor with bfloat16 instructions computes, without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpa_lightning import float32_products as products
from hpa_lightning.float32_products import Float32Products, float32_products, product_slowdown, products_on

HALF = torch.bfloat16


def halves(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=HALF, requires_grad=True)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "mm": (torch.mm, ((5, 96), (96, 7))),
    "linear": (F.linear, ((2, 5, 96), (7, 96), (7,))),
    "linear, a head's": (F.linear, ((2, 5, 96), (1300, 96), (1300,))),
    "linear, one row": (F.linear, ((1, 1, 96), (1300, 96))),
    "mm, many rows": (torch.mm, ((1300, 96), (96, 7))),
    "addmm, a row": (torch.addmm, ((1300,), (5, 96), (96, 1300))),
    "addmm, many rows": (torch.addmm, ((1,), (1300, 96), (96, 7))),
    "matmul": (torch.matmul, ((3, 5, 96), (96,))),
    "bmm": (torch.bmm, ((3, 5, 96), (3, 96, 7))),
    "addmm": (torch.addmm, ((5, 7), (5, 96), (96, 7))),
    "baddbmm": (torch.baddbmm, ((3, 5, 7), (3, 5, 96), (3, 96, 7))),
    "conv1d": (F.conv1d, ((2, 4, 20), (6, 4, 3), (6,))),
    "conv2d": (F.conv2d, ((2, 4, 9, 9), (6, 4, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, ((2, 4, 9, 9), (4, 6, 3, 3))),
    "attention": (F.scaled_dot_product_attention, ((2, 3, 9, 16), (2, 3, 9, 16), (2, 3, 9, 16))),
}


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of its weighted sum with respect to each input."""
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("name", CASES)
def test_products_are_nearer_to_exact_ones_than_the_processors_own(name: str) -> None:
    torch.manual_seed(0)
    function, shapes = CASES[name]
    inputs = [halves(*shape) for shape in shapes]
    exact = [one.detach().double().requires_grad_() for one in inputs]
    weights = torch.randn_like(function(*inputs))
    true = with_gradients(function, exact, weights.double())
    own = with_gradients(function, inputs, weights)
    with Float32Products():
        found = with_gradients(function, inputs, weights)
    for got, other, want in zip(found, own, true, strict=True):
        assert got.dtype == HALF
        unit = float(want.abs().max()) * 2**-8  # half a unit in the last place of the largest number
        assert float((got - want).abs().max()) <= 2 * unit  # attention rounds its output before its backward pass
        assert float((got.double() - want).norm()) <= 1.05 * float((other.double() - want).norm())


def test_a_product_is_the_float32_one_of_the_same_numbers_rounded_once() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(40, 3000, dtype=HALF), torch.randn(3000, 30, dtype=HALF)
    with Float32Products():
        assert torch.equal(a @ b, (a.float() @ b.float()).to(HALF))
    with Float32Products(), torch.inference_mode():  # where `linear` and `matmul` are not taken apart
        assert torch.equal(F.linear(a, b.T), (a.float() @ b.float()).to(HALF))
        assert torch.equal(a @ b, (a.float() @ b.float()).to(HALF))
        assert torch.equal(F.linear(a.view(4, 10, 3000), b.T), (a @ b).view(4, 10, 30))
        assert torch.equal(F.linear(a[0], b.T), (a[:1] @ b)[0])  # a vector


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="of PyTorch 2.10")
def test_experts_of_a_mixture_are_products_too() -> None:
    torch.manual_seed(0)
    tokens, experts = torch.randn(40, 64, dtype=HALF), torch.randn(3, 64, 32, dtype=HALF)
    ends = torch.tensor([16, 24, 40], dtype=torch.int32)
    with float32_products():
        found = F.grouped_mm(tokens, experts, offs=ends)
    parts = torch.tensor_split(tokens.float(), ends[:-1].tolist())
    wanted = torch.cat([part @ expert for part, expert in zip(parts, experts.float(), strict=True)])
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=1e-5)


def test_what_is_an_error_stays_one() -> None:
    a = torch.randn(4, 4, dtype=HALF)
    for wrong in (lambda: a.to_sparse_csr() @ a, lambda: torch.mm(a, a.float()), lambda: torch.mm(a, a[:3])):
        with pytest.raises(RuntimeError) as native:
            wrong()
        with pytest.raises(RuntimeError) as emulated, float32_products():
            wrong()
        assert str(emulated.value) == str(native.value)


def test_other_types_and_operations_pass() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 8, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    half = torch.randn(9, dtype=HALF)
    with Float32Products():
        assert torch.equal(a @ b, a.mm(b)) and (a @ b).dtype == torch.float64
        assert (a.float() @ b.float()).dtype == torch.float32
        assert (a.half() @ b.half()).dtype == torch.float16
        assert torch.equal(half.exp(), torch.exp(half)) and half.sum().dtype == HALF


class Widened(Float32Products):
    """Counts the products that were computed in float32."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Widened.count += func in products._PRODUCTS
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_contexts_in_each_other_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "Float32Products", Widened)
    monkeypatch.setattr(Widened, "count", 0)
    a = torch.ones(2, 2, dtype=HALF)
    with float32_products(), float32_products():
        a @ a
    assert Widened.count == 1
    with pytest.raises(ValueError, match="in it"), float32_products():
        raise ValueError("in it")
    a @ a
    assert Widened.count == 1  # it ends with an error, too
    with float32_products():
        a @ a
    assert Widened.count == 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_computed_again_as_they_were(reentrant: bool) -> None:
    """`torch.utils.checkpoint` refuses a second forward pass that saves other tensors than the first."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16)).to(HALF)
    x = halves(4, 16)
    with Float32Products():
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant).float().sum().backward()
        found = x.grad
        want = torch.autograd.grad(layer(x).float().sum(), x)[0]
    assert found is not None and torch.equal(found, want)


def test_the_slowdown_is_that_outside_of_all_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool, str]] = []

    def seconds(product: Callable[[], Tensor]) -> float:
        on = bool(torch.utils._python_dispatch._get_current_dispatch_mode_stack())
        seen.append((on, torch.is_autocast_enabled("cpu"), product().device.type))
        return 1.0

    monkeypatch.setattr(products, "_seconds", seconds)
    product_slowdown.cache_clear()
    with float32_products(), torch.autocast("cpu", HALF), torch.device("meta"):
        assert product_slowdown() == 1.0
    product_slowdown.cache_clear()
    assert seen == [(False, False, "cpu")] * 2


def test_only_a_slow_processor_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_slowdown() > 0
    a = torch.ones(2, 2, dtype=HALF)
    monkeypatch.setattr(products, "Float32Products", Widened)
    for slowdown, device, helped in ((0.5, "cpu", False), (8.0, "cpu", True), (8.0, "cuda:0", False)):
        monkeypatch.setattr(products, "product_slowdown", lambda slowdown=slowdown: slowdown)
        monkeypatch.setattr(Widened, "count", 0)
        with products_on(device):
            a @ a
        assert (Widened.count == 1) == helped, (slowdown, device)
