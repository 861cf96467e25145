"""The base of callbacks that act on the tuned linear layers."""

from __future__ import annotations

import lightning as L
from torch import nn

from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.modules.linears import TunedLinear, check_linears, find_tuned_linears


class LinearsCallback(TaskCallback):
    """Finds the linear layers under tuning in the decoder blocks.

    Args:
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        target_modules: last names of the linear layers to treat; all tuned ones when ``None``.

    Attributes:
        linears: handles on the layers, in the order of the blocks; empty between tasks.
    """

    def __init__(self, blocks: str | None = None, target_modules: list[str] | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.target_modules = target_modules
        self.linears: list[TunedLinear] = []
        self._blocks: list[nn.Module] = []

    def find_linears(self, pl_module: L.LightningModule) -> None:
        """Find the decoder blocks and the tuned linear layers of ``pl_module``."""
        self._blocks, self.linears = find_tuned_linears(pl_module, self.blocks, self.target_modules)
        check_linears(self.linears)
