"""What a model is shown of a conversation."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from support.chat_files import TURNS, read
from support.tiny_mllms import CHATML_TEMPLATE, picture, tiny_llava, tiny_qwen, tiny_tokenizer
from tokenizers import AddedToken

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, user_turn
from hpa_lightning.data.template import ChatTemplate


def test_what_the_model_is_shown(tmp_path: Path) -> None:
    for name in "abc":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    turns = [{"from": who, "value": value} for who, value in zip(["human", "gpt"] * 2, TURNS, strict=True)]
    (front,) = read(tmp_path, {"conversations": turns, "image": "a.png"})
    llava = MLLMCollator(tiny_llava()[1]).generate([front])
    assert llava["prompts"] == ["USER: What is it? ASSISTANT: a cat</s> USER: <image>\nAnd this? ASSISTANT:"]
    turns[2] = {"from": "human", "value": "Is this <image> red?"}
    (written,) = read(tmp_path, {"conversations": turns, "image": "a.png"}, image_place="as_written")
    (prompt,) = MLLMCollator(tiny_qwen()[1]).generate([written])["prompts"]
    assert "<|im_start|>user\nIs this <|vision_start|><|image_pad|><|vision_end|> red?<|im_end|>" in prompt


@pytest.mark.parametrize("thought", ["", "<think>\n\n</think>\n\n"], ids=["", "an empty thought"])
@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_behind_the_answer_ends_the_turn(special: bool, thought: str) -> None:
    """Marked as special or not; a thought's token before the answer, and what no token follows, do not."""
    tokenizer = tiny_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"})
    names = ("<|im_start|>", "<|im_end|>", "<|im", "<think>", "</think>", "\n")
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        f"{{% if message.role == 'assistant' %}}{thought}{{% endif %}}"
        "{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    collator = MLLMCollator(tokenizer)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    batch = collator.train([Record("r", (*user_turn("hi"), *assistant_turn("yes")))])
    assert batch["input_ids"][0].tolist() == tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == f"{thought}yes<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert collator.template.stop_token_ids() == sorted([end, tokenizer.eos_token_id])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    assert MLLMCollator(tokenizer).template.end_of_turn == "</s>"


@pytest.mark.parametrize("content", ["{{ message.content }}", "{{ '' + message.content }}"])
def test_a_template_that_prints_the_parts_of_a_turn_is_refused(content: str) -> None:
    """It expects strings; the model would read a list as Python writes it."""
    _, processor = tiny_qwen()
    processor.chat_template = f"{{% for message in messages %}}<|im_start|>{content}<|im_end|>{{% endfor %}}"
    with pytest.raises(ValueError, match=r"the chat template (writes|fails with TypeError).* parts .*chat_template"):
        MLLMCollator(processor)


def test_a_turn_that_the_template_leaves_out_is_refused() -> None:
    """Phi-3's first template passed over the system's turn."""
    _, processor = tiny_qwen()
    processor.chat_template = CHATML_TEMPLATE.replace("in messages %}", "in messages if message.role != 'system' %}")
    collator = MLLMCollator(processor)
    system = {"role": "system", "content": [{"type": "text", "text": "Be\nbrief."}]}
    record = Record("r", (system, *user_turn("hi"), *assistant_turn("yes")), source="a.json[3]")
    told = r"a\.json\[3\]: the chat template leaves out or changes .* system's turn, 'Be\\nbrief\.'"
    for make in (collator.train, collator.generate):
        with pytest.raises(ValueError, match=told):
            make([record])
    assert collator.generate([Record("r", record.messages[1:])])["prompts"][0].endswith("assistant\n")


def test_the_same_words_in_another_turn_do_not_stand_for_a_lost_one() -> None:
    _, processor = tiny_qwen()
    processor.chat_template = CHATML_TEMPLATE.replace("in messages %}", "in messages if message.role != 'system' %}")
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    with pytest.raises(ValueError, match=r"changes the text of the system's turn, 'Be brief\.'"):
        ChatTemplate(processor).prompt((system, *user_turn("Be brief. What?")))


def test_switches_of_thoughts_are_read_and_not_lost() -> None:
    """SmolLM3's template takes them out of the system's turn, and trims it."""
    _, processor = tiny_qwen()
    taken = "{{ part.text | replace('/no_think', '') | trim }}"
    processor.chat_template = CHATML_TEMPLATE.replace("{{ part['text'] }}", taken)
    assert taken in processor.chat_template
    system = {"role": "system", "content": [{"type": "text", "text": "Be nice. /no_think "}]}
    text, spans = ChatTemplate(processor).training_text((system, *user_turn("hi"), *assistant_turn("yes")), "r")
    assert "Be nice.<" in text and len(spans) == 1


def test_a_template_of_one_question_and_one_answer_is_taken() -> None:
    _, processor = tiny_qwen()
    refuses = "{% if messages | length > 2 %}{{ raise_exception('one of each') }}{% endif %}"
    processor.chat_template = refuses + CHATML_TEMPLATE
    template = ChatTemplate(processor)
    assert "<|im_start|>" in template.control_tokens and template.prompt(user_turn("hi"))


def test_what_a_template_writes_before_answers_ends_prompts() -> None:
    """Also where it does not know `add_generation_prompt`; models had to write it, and answers began with it."""
    _, processor = tiny_qwen()
    known, _, _ = CHATML_TEMPLATE.partition("{% if add_generation_prompt %}")
    record = Record("r", (*user_turn("a"), *assistant_turn("b"), *user_turn("hi"), *assistant_turn("yes")))
    expected = MLLMCollator(processor)
    with pytest.warns(UserWarning, match=r"does not know add_generation_prompt: '<\|im_start\|>assistant\\n'"):
        found = MLLMCollator(processor, chat_template=known)
    assert found.generate([record])["prompts"] == expected.generate([record])["prompts"]
    batches = [collator.train([record]) for collator in (found, expected)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in ("input_ids", "labels"))


def test_a_template_that_writes_the_date_is_told() -> None:
    """Llama 3.2's and Granite's do."""
    _, processor = tiny_qwen()
    dated = "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }}\n{% endif %}" + CHATML_TEMPLATE
    with pytest.warns(UserWarning, match="writes today's date") as told:
        MLLMCollator(processor, chat_template=dated)
    (advice,) = re.findall(r"'(\{%- macro .*?endmacro -%\})'", str(told[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator = MLLMCollator(processor, chat_template=advice + dated)
    assert collator.generate([Record("r", user_turn("hi"))])["prompts"][0].startswith("Today: 26 Jul 2024\n")
