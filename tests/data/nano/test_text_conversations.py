"""Conversations of the text model in rows."""

from __future__ import annotations

import torch

from hpa_lightning.data.nano import load_nano_text_model
from hpa_lightning.data.nano.batching import Encoder, answer_loss
from hpa_lightning.data.nano.text_conversations import text_conversations


def test_a_row_of_questions_gives_the_loss_of_each_alone() -> None:
    """The words that all questions begin with stand once, in front."""
    model, tokenizer = load_nano_text_model()
    encoder = Encoder(tokenizer)
    (group,) = [turns for turns in text_conversations("test", aligned=True, count=40) if len(turns) == 5][:1]
    with torch.no_grad():
        together = answer_loss(model, encoder.train_batch([group]))
        alone = [
            (answer_loss(model, encoder.train_batch([[example]])), len(encoder.answer(example))) for example in group
        ]
    mean = sum(loss * tokens for loss, tokens in alone) / sum(tokens for _, tokens in alone)
    torch.testing.assert_close(together, mean, rtol=1e-4, atol=1e-5)
