"""Language models whose loops over their blocks differ, and dense Hessians of their layers."""

from __future__ import annotations

import torch
from support.foreign_module import LanguageModel
from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]


def valid(batch: dict) -> torch.Tensor:
    return batch["attention_mask"].bool()


class Injecting(LanguageModel):
    """Adds features between two blocks, as models with deep visual features do."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for index, block in enumerate(self.layers):
            hidden = block(hidden)
            if index == 0:
                hidden = self.inject(hidden)
        return self.head(hidden)

    def inject(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 0.3


class Looping(LanguageModel):
    """Calls its blocks twice."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in [*self.layers, *self.layers]:
            hidden = block(hidden)
        return self.head(hidden)
