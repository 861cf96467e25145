"""Files of LLaMA-Factory, ms-swift, OpenAI and ShareGPT: nothing vanishes, and what would is an error."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.chat_files import IMAGE, MESSAGES, SHAREGPT, TURNS, YES, contents, part, read, text
from support.tiny_mllms import picture

from hpa_lightning.data import EncodedImage
from hpa_lightning.data.record import check_record, open_image

FORMS = {
    "llama-factory sharegpt": {"conversations": SHAREGPT, "system": "Be safe.", "images": ["a.png"]},
    "llava": {"conversations": SHAREGPT, "system": "Be safe.", "image": "a.png"},
    "llama-factory openai": {"messages": [{"role": "system", "content": "Be safe."}, *MESSAGES], "images": ["a.png"]},
    "minicpm": {"conversations": MESSAGES, "system": "Be safe.", "image": "a.png"},
    "ms-swift messages": {"messages": MESSAGES, "system": "Be safe.", "images": [{"bytes": None, "path": "a.png"}]},
    "ms-swift sharegpt": {
        "system": "Be safe.",
        "conversation": [{"human": "What is it?", "assistant": "a cat"}, {"human": TURNS[2], "assistant": "a dog"}],
        "images": ["a.png"],
    },
    "alpaca": {
        "instruction": "<image>And",
        "input": "this?",
        "output": "a dog",
        "history": [["What is it?", "a cat"]],
        "system": "Be safe.",
        "images": ["a.png"],
    },
    "ms-swift query": {
        "query": TURNS[2],
        "response": "a dog",
        "history": [["What is it?", "a cat"]],
        "system": "Be safe.",
        "images": ["a.png"],
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_every_documented_form_is_read_whole(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (record,) = read(tmp_path, FORMS[name])
    question = "And\nthis?" if name == "alpaca" else "And this?"
    assert contents(record) == [
        ("system", [text("Be safe.")]),
        ("user", [text("What is it?")]),
        ("assistant", [text("a cat")]),
        ("user", [IMAGE, text(question)]),
        ("assistant", [text("a dog")]),
    ]
    assert record.images == (str(tmp_path / "a.png"),)
    check_record(record, needs_answer=True)


def test_image_parts_of_openai_and_others(tmp_path: Path) -> None:
    picture(5).save(tmp_path / "a.png")
    (tmp_path / "host.org" / "deep").mkdir(parents=True)
    picture(5).save(tmp_path / "host.org" / "deep" / "b c.png")
    encoded = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    local, inline = str(tmp_path / "a.png"), f"data:image/png;base64,{encoded}"
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": inline, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "https://host.org/x/a.png?size=3"}},  # downloaded before
        {"type": "image_url", "image_url": {"url": "http://host.org/deep/b%20c.png"}},
        {"type": "input_image", "image_url": inline},
        {"type": "image", "image": f"file://{local}"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": local},
        {"type": "image", "base64": encoded},
        {"image": "a.png"},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = read(tmp_path, *map(part, parts))
    for record in records:
        assert contents(record)[0][1] == [IMAGE, text("Is it red?")]
        assert open_image(record.images[0], record.where).tobytes() == picture(5).tobytes()
    assert isinstance(records[0].images[0], EncodedImage)
    (column,) = read(tmp_path, {"messages": MESSAGES[:2], "images": [inline]})
    assert open_image(column.images[0], "r").tobytes() == picture(5).tobytes()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": MESSAGES[:2], "video": "a.mp4"}, r"video is 'a\.mp4'; video, audio and"),
        ({"messages": MESSAGES[:2], "audios": ["a.wav"]}, r"audios is \['a\.wav'\]"),
        ({"messages": MESSAGES[:2], "objects": {"bbox": [[1, 2, 3, 4]]}}, r"`objects` of grounding cannot be read"),
        ({"conversations": SHAREGPT[:2], "videos": ["a.mp4"]}, r"videos is"),
        ({"instruction": "a", "output": "b", "audio": "x"}, r"audio is 'x'"),
        (part({"type": "video", "video": "a.mp4"}), r"content part \{.*'video'.*other media cannot be read"),
        (part({"type": "input_audio", "input_audio": {"data": "x"}}), r"other media cannot be read"),
        (part({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}), r"nothing is downloaded.*a\.png"),
        (part({"type": "image", "url": "s3://bucket/a.png"}), r"'s3://bucket/a\.png' is an address"),
        (part({"type": "image", "url": "http://[x/a.png"}), r"is not an address"),
        (part({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}), r"is not base64"),
        (part({"type": "image_url", "image_url": {}}), r"the image is 'None'; expected a path"),
        (part({"type": "image", "path": "a", "url": "b"}), r"expected one of path, url"),
        ({"instruction": "<img>a.png</img>What?", "output": "b"}, r"holds '<img>a\.png</img>', a file between tags"),
        ({"messages": [{"role": "user", "content": "<video>a.mp4</video>What?"}, YES]}, r"file between tags"),
        ({"messages": MESSAGES, "images": []}, r"1 marks <image> in the text but 0 images"),
        ({"messages": MESSAGES, "images": ["a", "b"]}, r"1 marks <image> in the text but 2 images"),
        ({"messages": [{"role": "user", "content": [IMAGE, text("<image>x")]}, YES], "images": ["a"]}, r"one kind"),
        ({"conversations": [SHAREGPT[0], {"from": "gpt", "value": "<image>"}], "image": "a"}, r"only the user's turns"),
        ({"messages": MESSAGES[:2], "image": "a", "images": ["b"]}, r"under 'image' and under 'images'"),
        ({"messages": [{"role": "system", "content": "x"}, *MESSAGES[:2]], "system": "y"}, r"one of the two"),
        ({"messages": MESSAGES[:2], "system": ["x"]}, r"'system' is \['x'\]; expected a text"),
        ({"messages": [MESSAGES[0], {"role": "tool", "content": "x"}]}, r"turn 1 is of 'tool'; tool calls"),
        ({"messages": [{**MESSAGES[0], "loss": True}, YES]}, r"turn 0 of the user .* only answers can be learnt"),
        ({"messages": [MESSAGES[0], {**YES, "weight": 0.5}]}, r"'weight' of turn 1 is 0\.5; expected true, false"),
        ({"messages": [MESSAGES[0], {**YES, "weight": 0, "loss": True}]}, r"expected them to say the same"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": "\ud83d x"}]}, r"half of a surrogate pair"),
    ],
)
def test_what_would_be_lost_or_wrong_is_an_error(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^t\.json\[1\]: .*" + message):
        read(tmp_path, _good(row), row)


def _good(row: dict[str, Any]) -> dict[str, Any]:
    """A good record of the same format, since the first one tells it."""
    if "conversations" in row:
        return {"conversations": SHAREGPT[:2]}
    return {"messages": MESSAGES[:2]} if "messages" in row else {"instruction": "a", "output": "b"}
