"""What callbacks ask a LightningModule for, besides what Lightning does; ``MLLMModule`` has all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import lightning as L

from hpa_lightning.data.protocols import Collator, OpeningCollator
from hpa_lightning.data.record import Record
from hpa_lightning.members import require_members

_INSTEAD = "Add it (hpa_lightning.answering says what it gives), or use MLLMModule."


class AnsweringModule(Protocol):
    """A module that answers: for the aligned model's own refusals."""

    def generate(self, batch: dict[str, Any], /) -> Sequence[str]:
        """Return the answers to a ``generate`` batch on the module's device, without their prompts."""


class ScoredModule(Protocol):
    """A module that answers up to a length: for everything that is scored."""

    def generate(self, batch: dict[str, Any], /, *, max_new_tokens: int | None) -> Sequence[str]:
        """Return the answers to a ``generate`` batch, each of at most ``max_new_tokens`` tokens."""


class ChoosingModule(Protocol):
    """A module that chooses among given answers: for multiple choice by likelihood."""

    def choose(self, records: Sequence[Record], collator: Collator, batch_size: int, /) -> Sequence[Sequence[float]]:
        """Return of every record one log-likelihood for each of its ``choices``."""


class OpeningModule(Protocol):
    """A module that tells how likely a reply begins so: for a second judge by the likelihood of a refusal."""

    def opening_likelihoods(
        self, records: Sequence[Record], openings: Sequence[str], collator: OpeningCollator, batch_size: int, /
    ) -> Sequence[Sequence[float]]:
        """Return of every record the log-probability that the reply begins with each of the openings."""


def answering_module(pl_module: L.LightningModule, caller: str) -> AnsweringModule:
    """Return the module as one that answers.

    Raises:
        MisconfigurationException: it does not.
    """
    asks = f"{caller} asks the module for"
    module: AnsweringModule = require_members(pl_module, AnsweringModule, asks, _INSTEAD)
    return module


def scored_module(pl_module: L.LightningModule, caller: str) -> ScoredModule:
    """Return the module as one that answers up to a length.

    Raises:
        MisconfigurationException: it does not.
    """
    asks = f"{caller} asks the module for"
    module: ScoredModule = require_members(pl_module, ScoredModule, asks, _INSTEAD)
    return module


def choosing_module(pl_module: L.LightningModule, caller: str) -> ChoosingModule:
    """Return the module as one that chooses.

    Raises:
        MisconfigurationException: it does not.
    """
    asks = f"{caller} scores multiple choice and asks the module for"
    module: ChoosingModule = require_members(pl_module, ChoosingModule, asks, _INSTEAD)
    return module


def opening_module(pl_module: L.LightningModule, caller: str) -> OpeningModule:
    """Return the module as one that tells how likely a reply begins so.

    Raises:
        MisconfigurationException: it does not.
    """
    asks = f"{caller} has openings and asks the module for"
    instead = f"{_INSTEAD.removesuffix('.')}, or leave the sets' openings out."
    module: OpeningModule = require_members(pl_module, OpeningModule, asks, instead)
    return module
