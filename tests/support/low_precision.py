"""Float32 matrix products in a lower precision, as users ask for it: for tests of what must not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

LowPrecision = Callable[[], AbstractContextManager[None]]


@contextmanager
def by_the_old_setting() -> Iterator[None]:
    """What Lightning recommends on tensor cores."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def by_the_new_setting() -> Iterator[None]:
    """From torch 2.9 on; afterwards the old one cannot be read."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"


WAYS: list[LowPrecision] = [by_the_old_setting]
if hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
    WAYS.append(by_the_new_setting)
