"""Which tokens are learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_files import MESSAGES, read
from support.tiny_mllms import tiny_llava

from hpa_lightning.data import MLLMCollator, Record

KEYS_OF_LOSS = [
    *((key, False, True) for key in ("loss", "train", "training")),
    ("weight", 0, 1),
    ("loss_scale", 0.0, 1.0),
]


def test_turns_with_loss_false_are_not_learnt(tmp_path: Path) -> None:
    """`loss` of ms-swift, `weight` of OpenAI, `train` and `training` of axolotl."""
    collator = MLLMCollator(tiny_llava()[1])
    tokenizer = tiny_llava()[1].tokenizer
    for key, no, yes in KEYS_OF_LOSS:
        turns = [dict(turn) for turn in MESSAGES]
        turns[2]["content"] = "And?"
        turns[1][key], turns[3][key] = no, yes
        (record,) = read(tmp_path, {"messages": turns})
        labels = collator.train([record])["labels"][0]
        assert tokenizer.decode(labels[labels >= 0]).strip() == "a dog</s>", key
    both = collator.train([Record("0", tuple({k: v for k, v in m.items() if k != "loss"} for m in record.messages))])
    assert "cat" in tokenizer.decode(both["labels"][0][both["labels"][0] >= 0])
    turns = [{**MESSAGES[0]}, {**MESSAGES[1], "loss": False}]
    (record,) = read(tmp_path, {"messages": turns})
    with pytest.raises(ValueError, match=r"^t\.json\[0\]: every answer has loss: false"):
        collator.train([record])
