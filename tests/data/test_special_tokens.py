"""The ids of a conversation are those of transformers' ``apply_chat_template(tokenize=True)``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_mllms import (
    VICUNA_TEMPLATE,
    picture,
    tiny_idefics3,
    tiny_llava,
    tiny_qwen,
    tiny_tokenizer,
    training_records,
)
from tokenizers.processors import TemplateProcessing

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, message_text, user_turn

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TALK = Record("talk", (*user_turn("hi"), *assistant_turn("yes"), *user_turn("more"), *assistant_turn("no, it is")))
REPLIES = ("I cannot help", "No")


def adding(tokenizer: Any, single: str) -> Any:
    """The tokenizer with a post-processor of its own."""
    names = [name for name in single.split() if name != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    )
    return tokenizer


def tokenizer(template: str, single: str, extra: tuple[str, ...] = ()) -> Any:
    made = tiny_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, extra)
    made.chat_template = template
    return adding(made, single)


def chatml(single: str) -> Any:
    return tokenizer(CHATML, single, ("<|im_start|>", "<|im_end|>"))


TOKENIZERS = {
    "an end": lambda: chatml("$A </s>"),
    "the token that ends turns": lambda: chatml("$A <|im_end|>"),
    "a beginning that the template does not write": lambda: chatml("<s> $A"),
    "both": lambda: chatml("<s> $A </s>"),
    "both, and the template the first": lambda: tokenizer(
        "{{ bos_token }}" + CHATML, "<s> $A </s>", ("<|im_start|>", "<|im_end|>")
    ),
    "what the template writes, which is no bos_token": lambda: tokenizer(
        GLM, "[gMASK] <sop> $A", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|end|>")
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_adds_nothing_to_what_the_template_writes(name: str) -> None:
    made = TOKENIZERS[name]()
    collator = MLLMCollator(made)
    turns = [{"role": turn["role"], "content": message_text(turn)} for turn in TALK.messages]
    prompt = made.apply_chat_template(turns[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert collator.generate([TALK])["inputs"]["input_ids"][0].tolist() == prompt
    batch = collator.train([TALK])
    end = collator.template.end_of_turn
    assert batch["input_ids"][0].tolist() == made.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert made.decode(batch["labels"][0][batch["labels"][0] != -100]) == f"yes{end}no, it is{end}"
    check_beginnings(collator, TALK)


def check_beginnings(collator: MLLMCollator, record: Record) -> None:
    """The tokens of a reply are those that training teaches behind the prompt."""
    prompt = collator.generate([record])["inputs"]["input_ids"][0].tolist()
    turns = record.prompt_and_references()[0]
    for reply, ids in zip(REPLIES, collator.beginnings([record], REPLIES)[0], strict=True):
        answered = Record("r", (*turns, *assistant_turn(reply)), record.images)
        whole = collator.train([answered])["input_ids"][0].tolist()
        assert ids and whole[: len(prompt) + len(ids)] == prompt + ids


@pytest.mark.parametrize("end", ["", "EOS"], ids=["no end", "an end"])
@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen, tiny_idefics3])
def test_a_processor_adds_in_front_what_transformers_adds_and_nothing_behind(build: Any, end: str) -> None:
    """LLaVA-1.5's template writes no <s>: its tokenizer adds it. SmolVLM's begins with its bos_token."""
    processor = build()[1]
    words = processor.tokenizer
    front = words.bos_token or ""
    adding(words, f"{front} $A".strip())
    turns = (*user_turn("Is it red?", 1), *assistant_turn("yes"), *user_turn("And this?", 1), *assistant_turn("no"))
    record = Record("r", turns, (picture(1), picture(2)))
    first = Record("first", turns[:1], record.images[:1])
    image, text = turns[0]["content"]
    shown = [{"role": "user", "content": [{**image, "image": first.images[0]}, text]}]
    found = processor.apply_chat_template(shown, add_generation_prompt=True, tokenize=True, return_dict=True)
    prompt = torch.as_tensor(found["input_ids"]).flatten().tolist()
    assert prompt.count(words.bos_token_id) == bool(front)
    before = MLLMCollator(processor).train([record, *training_records(2)])
    adding(words, f"{front} $A {end and words.eos_token}".strip())
    kept = words.backend_tokenizer.post_processor.__getstate__()
    collator = MLLMCollator(processor)
    assert collator.generate([first])["inputs"]["input_ids"][0].tolist() == prompt
    batch = collator.train([record, *training_records(2)])
    assert batch.keys() == before.keys() and all(torch.equal(batch[key], before[key]) for key in batch)
    learnt = words.decode(batch["labels"][0][batch["labels"][0] != -100]).replace(" ", "")
    assert learnt == "yesENDnoEND".replace("END", collator.template.end_of_turn)
    check_beginnings(collator, record)
    assert words.backend_tokenizer.post_processor.__getstate__() == kept  # the tokenizer is left as it was


def test_a_front_of_several_tokens_is_added_once() -> None:
    processor = tiny_llava()[1]
    processor.tokenizer.add_tokens(["[gMASK]", "<sop>"], special_tokens=True)
    adding(processor.tokenizer, "[gMASK] <sop> $A </s>")
    for template in (VICUNA_TEMPLATE, "[gMASK]<sop>" + VICUNA_TEMPLATE):
        collator = MLLMCollator(processor, chat_template=template)
        batch = collator.train([TALK])
        text = processor.tokenizer.decode(batch["input_ids"][0])
        assert text.replace(" ", "") == "[gMASK]<sop>USER:hiASSISTANT:yes</s>USER:moreASSISTANT:no,itis</s>"
        labels = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
        assert labels == " yes</s> no, it is</s>"
        check_beginnings(collator, TALK)


def test_plain_conversations_begin_as_the_tokenizer_begins_texts() -> None:
    """No model was trained with this template: its model has seen the tokenizer's beginning."""
    made = chatml("<s> $A </s>")
    (ids,) = MLLMCollator(made, chat_template="plain").generate([Record("r", user_turn("hi"))])["inputs"]["input_ids"]
    assert made.decode(ids) == "<s>USER: hi\nASSISTANT:"


def test_a_template_that_writes_the_beginning_now_and_then_is_refused() -> None:
    processor = tiny_llava()[1]
    adding(processor.tokenizer, "<s> $A")
    template = "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}" + VICUNA_TEMPLATE
    collator = MLLMCollator(processor, chat_template=template)
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    records = [Record("one", user_turn("hi")), Record("two", (system, *user_turn("hi")))]
    with pytest.raises(ValueError, match=r"'one', record 'two'.* begins some conversations of the batch with '<s>'"):
        collator.generate(records)
    prompts = [collator.generate([one])["inputs"]["input_ids"][0] for one in records]
    assert all(int((ids == processor.tokenizer.bos_token_id).sum()) == 1 for ids in prompts)
