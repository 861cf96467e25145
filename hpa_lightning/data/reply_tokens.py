"""The tokens of how replies begin, as they follow a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpa_lightning.data.record import Record
from hpa_lightning.data.template import ChatTemplate


def tokens_behind_prompt(
    tokenizer: Any, template: ChatTemplate, record: Record, replies: Sequence[str]
) -> list[list[int]]:
    """Return for each reply the ids of the tokens that follow those of the record's prompt.

    Prompt and beginning are tokenized together, since a token may depend on the one before it, and nothing follows.

    Args:
        tokenizer: of the processor.
        template: renders the turns.
        record: its prompt; a final assistant turn is cut off.
        replies: how replies begin.

    Raises:
        ValueError: named by the record, if the tokens of its prompt depend on the reply.
    """
    messages = record.prompt_and_references()[0]
    texts = [
        template.prompt(messages, record.where),
        *(template.begun(messages, reply, record.where) for reply in replies),
    ]
    prompt, *begun = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for reply, ids in zip(replies, begun, strict=True):
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise ValueError(
                f"{record.where}: the tokens of its prompt change if the reply begins with {reply[:60]!r}; the chat "
                "template needs a token boundary before the answer."
            )
    return [ids[len(prompt) :] for ids in begun]
