"""The tokens of how replies begin are those that training teaches behind the prompt of generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.multimodal_fits import MODELS
from support.multimodal_fits import processor as processor_of
from support.tiny_mllms import VICUNA_TEMPLATE, tiny_llava, training_records

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, user_turn

REPLIES = ("I cannot help with that.", "No", "Sorry, no: it is\nred")


@pytest.mark.parametrize("architecture", MODELS)
def test_they_are_the_labels_of_the_reply_without_the_end_of_the_turn(architecture: str) -> None:
    collator = MLLMCollator(processor_of(architecture))
    talk = Record("talk", (*user_turn("What?"), *assistant_turn("red"), *user_turn("And now?")))
    records = [*training_records(3, text_only_every=2), talk]
    found = collator.beginnings(records, REPLIES)
    for record, row in zip(records, found, strict=True):
        prompt = record.prompt_and_references()[0]
        for reply, ids in zip(REPLIES, row, strict=True):
            whole = collator.train([replace(record, messages=(*prompt, *assistant_turn(reply)))])
            labels = whole["labels"][0]
            first = int(whole["input_ids"].shape[1]) - int(labels.flip(0).ne(-100).nonzero()[0]) - 1
            while first > 0 and labels[first - 1] != -100:
                first -= 1
            learnt = labels[first:][labels[first:] != -100].tolist()
            assert learnt[: len(ids)] == ids and collator.template.end_of_turn.startswith(
                collator.processor.tokenizer.decode(learnt[len(ids) :]).strip()
            )


def changed(template: str) -> Any:
    processor = tiny_llava()[1]
    processor.chat_template = template
    return processor


def test_a_token_that_reaches_from_the_prompt_into_the_reply_is_named() -> None:
    ends_with_blank = changed(VICUNA_TEMPLATE.replace("'ASSISTANT:' }}", "'ASSISTANT: ' }}"))
    with pytest.raises(ValueError, match=r"record 'r0': the tokens of its prompt change .* 'red'; the chat template"):
        MLLMCollator(ends_with_blank).beginnings(training_records(2), ("red",))


def test_what_the_template_writes_before_every_answer_belongs_to_the_reply() -> None:
    """An empty thought, which generation has to produce too."""
    thinks = VICUNA_TEMPLATE.replace(
        "{% for part in message['content'] if part['type'] == 'text' %}",
        "{% if message['role'] == 'assistant' %}{{ '<think></think> ' }}{% endif %}"
        "{% for part in message['content'] if part['type'] == 'text' %}",
    )
    processor = changed(thinks)
    ((ids,),) = MLLMCollator(processor).beginnings(training_records(1), ("No",))
    assert processor.tokenizer.decode(ids).strip() == "<think></think> No"
