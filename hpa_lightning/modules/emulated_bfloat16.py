"""Lightning's bfloat16 precisions on processors that have no instructions for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from hpa_lightning.float32_products import bfloat16_is_slow, float32_products, product_slowdown

_FASTER = "precision 32-true, with the model's weights in float32 (dtype), is faster still, and rounds otherwise"


class _InFloat32:
    """Of a precision plugin: products in float32, in forward and backward passes and in optimizers."""

    precision: Any

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        above: Any = super()
        with float32_products(), above.forward_context():
            yield

    def backward(self, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        above: Any = super()
        with float32_products():
            above.backward(tensor, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        above: Any = super()
        with float32_products():  # `torch.optim.Muon` computes in bfloat16
            return above.optimizer_step(*args, **kwargs)

    def connect(self, model: nn.Module, optimizers: Any, lr_schedulers: Any) -> Any:
        """Called when the model is where it will run.

        Raises:
            MisconfigurationException: it is not on a CPU.
        """
        above: Any = super()
        kinds = {one.device.type for one in model.parameters()} - {"cpu", "meta"}
        if kinds:
            raise MisconfigurationException(
                f"{type(self).__name__} is for a CPU, and the model is on {min(kinds)}; "
                f"expected precision={str(self.precision)!r} in place of it."
            )
        return above.connect(model, optimizers, lr_schedulers)


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


def precision_of(trainer: L.Trainer) -> str:
    """What a trainer computes in, in words: its ``precision``, and how the products are made if not as it says."""
    by_way = isinstance(trainer.precision_plugin, _InFloat32)
    return f"{trainer.precision}, products by way of float32" if by_way else str(trainer.precision)


def is_slow(trainer: L.Trainer) -> bool:
    """Whether a trainer computes in bfloat16 on a processor that is slow in it, and has no plugin of this file."""
    plugin: Any = trainer.precision_plugin
    plain = type(plugin) in (MixedPrecision, HalfPrecision) and plugin.precision in ("bf16-mixed", "bf16-true")
    return plain and trainer.strategy.root_device.type == "cpu" and bfloat16_is_slow()


def advice(trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """What to do with a trainer whose products are slow here, in words; ``None`` where they are not.

    Weights in bfloat16 are slow in ``32-true``, too, which leaves them as they are.
    """
    if is_slow(trainer):
        kind = _plugin_for(trainer)
        return (
            f"precision {trainer.precision}: {_slowness()}. Trainer(plugins=[{kind.__name__}()]) of "
            f"hpa_lightning.modules, in place of precision, computes the same by way of float32; {_FASTER}."
        )
    plain = type(trainer.precision_plugin) is Precision and trainer.strategy.root_device.type == "cpu"
    if plain and any(one.dtype == torch.bfloat16 for one in module.parameters()) and bfloat16_is_slow():
        return (
            f"precision {trainer.precision} with weights in bfloat16: {_slowness()}. dtype='float32' is faster; "
            "so is Trainer(plugins=[EmulatedBF16True()]) of hpa_lightning.modules, in place of precision."
        )
    return None


def emulate_where_slow(trainer: L.Trainer) -> None:
    """Give a trainer that :func:`is_slow` the plugin of this file, before its fit or test, and say so."""
    if not is_slow(trainer):
        return
    kind = _plugin_for(trainer)
    trainer.strategy.precision_plugin = kind()
    rank_zero_info(
        f"precision {trainer.precision}: {_slowness()}. Products are computed in float32, and rounded to bfloat16 "
        f"({kind.__name__}); {_FASTER}."
    )


def _plugin_for(trainer: L.Trainer) -> type[EmulatedBF16Mixed] | type[EmulatedBF16True]:
    return EmulatedBF16Mixed if trainer.precision == "bf16-mixed" else EmulatedBF16True


def _slowness() -> str:
    return (
        f"this processor is slow in bfloat16, a product takes {product_slowdown():.0f} times as long as by way of "
        "float32"
    )
