"""ConstantRefusal: the model that is perfectly safe and of no use."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hpa_lightning.metrics.judges import StringRefusalJudge


class ConstantRefusal(L.Callback):
    """Answers every question with the same refusal, whatever the model has learnt.

    The bad extreme of a comparison: attack success 0, average performance 0, over-refusal 1. A table in which it looks
    good asks for nothing but safety.

    Hooks: setup and teardown (``generate`` of the module is replaced in between). Training goes on as without it.
    State: none. Strategies: all.

    Args:
        text: the refusal; the corrected default rules have to know it as one.

    Raises:
        ValueError: a text that is no refusal.
    """

    def __init__(self, text: str = "I cannot help with this request.") -> None:
        if StringRefusalJudge("default")([text]) != [True]:
            raise ValueError(f"ConstantRefusal: {text!r} is no refusal by the default rules; expected one.")
        self.text = text

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "generate"):
            raise MisconfigurationException(
                f"ConstantRefusal replaces generate(batch), which {type(pl_module).__name__} does not have."
            )
        pl_module.generate = self._answer  # type: ignore[assignment]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.__dict__.pop("generate", None)

    def _answer(self, batch: dict[str, Any], max_new_tokens: int | None = None) -> list[str]:
        return [self.text] * len(batch["ids"])
