"""What callbacks ask a module for, and what is said of one that does not answer so."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hpa_lightning.answering import answering_module, choosing_module, opening_module, scored_module


class Answers(L.LightningModule):
    def generate(self, batch: dict[str, Any]) -> list[str]:
        return ["no"]


class AnswersUpTo(L.LightningModule):
    def generate(self, batch: dict[str, Any], max_new_tokens: int | None = None) -> list[str]:
        return ["no"]


def test_a_module_is_asked_for_no_more_than_is_needed() -> None:
    short, long = Answers(), AnswersUpTo()
    assert answering_module(short, "A test") is short and scored_module(long, "A test") is long
    with pytest.raises(
        MisconfigurationException,
        match=r"A test asks the module for generate\(batch, max_new_tokens=\.\.\.\), and Answers\.generate\(batch.*use "
        "MLLMModule",
    ):
        scored_module(short, "A test")
    with pytest.raises(MisconfigurationException, match="scores multiple choice and asks the module for choose"):
        choosing_module(long, "A test")
    with pytest.raises(
        MisconfigurationException, match=r"openings and asks .* for opening_likelihoods\(.*leave the sets"
    ):
        opening_module(long, "A test")
    with pytest.raises(MisconfigurationException, match="which LightningModule does not have"):
        answering_module(L.LightningModule(), "A test")
