"""Lightning's bfloat16 precisions on processors that have no instructions for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from hpa_lightning.float32_products import bfloat16_is_slow, float32_products, product_slowdown


class _InFloat32:
    """Of a precision plugin: products in float32, in forward and backward passes."""

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        above: Any = super()
        with float32_products(), above.forward_context():
            yield

    def backward(self, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        above: Any = super()
        with float32_products():
            above.backward(tensor, *args, **kwargs)


class EmulatedBF16Mixed(_InFloat32, MixedPrecision):
    """Lightning's ``bf16-mixed`` on a CPU, its products by way of float32.

    See :class:`~hpa_lightning.float32_products.Float32Products`. For ``Trainer(plugins=[EmulatedBF16Mixed()])``; the
    command line takes it by itself where it is faster.
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")


class EmulatedBF16True(_InFloat32, HalfPrecision):
    """Lightning's ``bf16-true`` on a CPU; see :class:`EmulatedBF16Mixed`."""

    def __init__(self) -> None:
        super().__init__("bf16-true")


def products_of(plugin: Precision | None) -> AbstractContextManager[None]:
    """What answers outside Lightning's steps are computed in, so that they are those of the plugin's own steps."""
    return float32_products() if isinstance(plugin, _InFloat32) else nullcontext()


def is_slow(trainer: L.Trainer) -> bool:
    """Whether a trainer computes in bfloat16 on a processor that is slow in it, and has no plugin of this file."""
    plugin: Any = trainer.precision_plugin
    plain = type(plugin) in (MixedPrecision, HalfPrecision) and plugin.precision in ("bf16-mixed", "bf16-true")
    return plain and trainer.strategy.root_device.type == "cpu" and bfloat16_is_slow()


def advice(trainer: L.Trainer) -> str:
    """What to do with a trainer that :func:`is_slow`, in words."""
    kind = _plugin_for(trainer)
    return (
        f"precision {trainer.precision}: {_slowness()}. Trainer(plugins=[{kind.__name__}()]) of hpa_lightning.modules, "
        "in place of precision, computes the same by way of float32; precision='32-true' is faster still, and rounds "
        "otherwise."
    )


def emulate_where_slow(trainer: L.Trainer) -> None:
    """Give a trainer that :func:`is_slow` the plugin of this file, before its fit or test, and say so."""
    if not is_slow(trainer):
        return
    kind = _plugin_for(trainer)
    trainer.strategy.precision_plugin = kind()
    rank_zero_info(
        f"precision {trainer.precision}: {_slowness()}. Products are computed in float32, and rounded to bfloat16 "
        f"({kind.__name__}); --trainer.precision 32-true is faster still, and rounds otherwise."
    )


def _plugin_for(trainer: L.Trainer) -> type[EmulatedBF16Mixed] | type[EmulatedBF16True]:
    return EmulatedBF16Mixed if trainer.precision == "bf16-mixed" else EmulatedBF16True


def _slowness() -> str:
    return (
        f"this processor is slow in bfloat16, a product takes {product_slowdown():.0f} times as long as by way of "
        "float32"
    )
