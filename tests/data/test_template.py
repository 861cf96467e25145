"""What a model is shown of a conversation."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_files import TURNS, read
from support.tiny_mllms import picture, tiny_llava, tiny_qwen, tiny_tokenizer
from tokenizers import AddedToken

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, user_turn


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
