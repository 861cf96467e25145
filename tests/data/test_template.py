"""What a model is shown of a conversation."""

from __future__ import annotations

from pathlib import Path

from support.chat_files import TURNS, read
from support.tiny_mllms import picture, tiny_llava, tiny_qwen

from hpa_lightning.data import MLLMCollator


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
