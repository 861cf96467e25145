"""Files of LLaMA-Factory, ms-swift, OpenAI and ShareGPT: nothing vanishes, images stay in their turns."""

from __future__ import annotations

import base64
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from support.tiny_mllms import evaluation_records, picture, tiny_llava, tiny_qwen, training_records

from hpa_lightning.data import CVITDataModule, EncodedImage, HubDataset, MLLMCollator, Record, Task, read_records
from hpa_lightning.data.benchmarks import CaptionedImages
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.readers import DataWarning
from hpa_lightning.data.record import assistant_turn, check_record, open_image, user_turn

IMAGE, YES = {"type": "image"}, {"role": "assistant", "content": "yes"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def read(folder: Path, *rows: Any, **options: Any) -> list[Record]:
    (folder / "t.json").write_text(json.dumps(list(rows)))
    return read_records(folder / "t.json", **options)


def contents(record: Record) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(message["role"], message["content"]) for message in record.messages]


# The documented forms of LLaMA-Factory (data/README.md) and ms-swift (Custom-dataset.md), each the same conversation.
TURNS = ["What is it?", "a cat", "<image>And this?", "a dog"]
SHAREGPT = [{"from": who, "value": value} for who, value in zip(["human", "gpt"] * 2, TURNS, strict=True)]
MESSAGES = [{"role": who, "content": value} for who, value in zip(["user", "assistant"] * 2, TURNS, strict=True)]
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


def test_images_without_marks_stand_in_front_as_in_the_demo_of_llama_factory(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Who are they?"}, YES], "images": ["mllm_demo_data/1.jpg"]}
    (record,) = read(tmp_path, row)
    assert contents(record)[0] == ("user", [IMAGE, text("Who are they?")])
    (record,) = read(tmp_path, {"conversations": SHAREGPT[:2], "images": ["a.png", "b.png"]})
    assert contents(record)[0] == ("user", [IMAGE, IMAGE, text("What is it?")])


def test_marks_stay_in_their_turn_and_move_to_its_front(tmp_path: Path) -> None:
    """LLaVA's preprocessing takes the marks out of a sentence, strips it and puts the image before it."""
    turns = [
        {"from": "human", "value": "Compare <image> with <image>."},
        {"from": "gpt", "value": "so"},
        {"from": "human", "value": "And now?\n<image>"},
        {"from": "gpt", "value": "thus"},
    ]
    rows = {"conversations": turns, "image": ["a.png", "b.png", "c.png"]}
    (front,) = read(tmp_path, rows)
    assert contents(front)[0][1] == [IMAGE, IMAGE, text("Compare  with .")]
    assert contents(front)[2][1] == [IMAGE, text("And now?")]
    (written,) = read(tmp_path, rows, image_place="as_written")
    assert contents(written)[0][1] == [text("Compare "), IMAGE, text(" with "), IMAGE, text(".")]
    assert contents(written)[2][1] == [text("And now?\n"), IMAGE]
    assert front.images == written.images == tuple(str(tmp_path / f"{name}.png") for name in "abc")
    with pytest.raises(ValueError, match=r"image_place is 'middle'; expected one of front, as_written"):
        read(tmp_path, rows, image_place="middle")


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


def test_image_place_is_set_from_yaml_for_all_and_for_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Is this <image> red?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "t.json").write_text(json.dumps([{"conversations": turns, "image": "a.png"}]))
    task = {"train": str(tmp_path / "t.json"), "test": str(tmp_path / "t.json")}
    settings = {
        "tasks": [{"name": "a", **task}, {"name": "b", **task, "image_place": "front"}],
        "safety_sets": [{"name": "s", "kind": "safety", "data": task["test"], "image_place": "front"}],
        "harmful_calibration": task["test"],
        "image_place": "as_written",
        "check_images": False,
        "allow_overlap": True,
    }
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(CVITDataModule, "data", subclass_mode=True)
    config = {"data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": settings}}
    data = parser.instantiate_classes(parser.parse_object(yaml.safe_load(yaml.safe_dump(config)))).data
    data.setup()
    as_written, front = [text("Is this "), IMAGE, text(" red?")], [IMAGE, text("Is this  red?")]
    found = [data._source.training(item)[0] for item in data.tasks]
    found += [data._source.evaluation(item)[0] for item in data.evaluation_sets()]
    found += data.harmful_calibration_records()
    expected = [as_written, front, as_written, front, front, as_written]
    assert [contents(record)[0][1] for record in found] == expected
    with pytest.raises(ValueError, match=r"image_place is 'left'"):
        Task("a", "x", "y", image_place="left")  # type: ignore[arg-type]


def test_published_readers_have_the_same_places(tmp_path: Path) -> None:
    question = {"question_id": 1, "image": "a.png", "text": "Is this <image> red?", "answer": "x"}
    (tmp_path / "q.json").write_text(json.dumps([question]))
    captions = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    (tmp_path / "c.json").write_text(json.dumps(captions))
    for place, expected in (("front", [IMAGE, text("Is this  red?")]), ("as_written", None)):
        reader = CaptionedImages(str(tmp_path / "q.json"), str(tmp_path / "c.json"), image_place=place)  # type: ignore
        (record,) = reader.read()
        assert contents(record)[0][1] == (expected or [text("Is this "), IMAGE, text(" red?")])
    pytest.importorskip("datasets")
    (hub,) = HubDataset("json", data_files=str(tmp_path / "q.json"), image_place="as_written").read()
    assert contents(hub)[0][1][1] == IMAGE


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


def part(value: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [value, text("Is it red?")]}, YES]}


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
        (part({"type": "image", "url": "http://[x/a.png"}), r"is no address"),
        (part({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}), r"is no base64"),
        (part({"type": "image_url", "image_url": {}}), r"the image is 'None'; expected a path"),
        (part({"type": "image", "path": "a", "url": "b"}), r"expected one of path, url"),
        ({"instruction": "<img>a.png</img>What?", "output": "b"}, r"holds '<img>a\.png</img>', a file between tags"),
        ({"messages": [{"role": "user", "content": "<video>a.mp4</video>What?"}, YES]}, r"file between tags"),
        ({"messages": MESSAGES, "images": []}, r"1 marks <image> in the text but 0 images"),
        ({"messages": MESSAGES, "images": ["a", "b"]}, r"1 marks <image> in the text but 2 images"),
        ({"messages": [{"role": "user", "content": [IMAGE, text("<image>x")]}, YES], "images": ["a"]}, r"one kind"),
        ({"conversations": [SHAREGPT[0], {"from": "gpt", "value": "<image>"}], "image": "a"}, r"user's turns alone"),
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


def test_unknown_keys_are_told_once_for_a_file_with_counts(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES[:2], "tools": "[]", "source": None, "extra": []}] * 3
    rows += [{"messages": [{**MESSAGES[0], "name": "Ann"}, {**MESSAGES[1], "name": "Bob"}], "model": "x"}] * 2
    with pytest.warns(DataWarning) as told:
        read(tmp_path, *rows)
    (warning,) = told
    assert str(warning.message) == (
        "t.json: unknown key 'tools' in 3 of 5 records, unknown key 'messages[].name' in 2 of 5 records, "
        "unknown key 'model' in 2 of 5 records; not read."
    )
    (part, *_) = parts = check_stream(CVITDataModule([Task("a", str(tmp_path / "t.json"), evaluation_records(2))]))
    assert not part.problems and "unknown key 'tools' in 3 of 5 records" in summary(parts)


def test_marks_of_media_without_media_are_told(tmp_path: Path) -> None:
    """A page's source may hold them; what is no path between two tags is text, and so are answers."""
    page = '<video controls>\n<source src="a.mp4">\n</video> <img src="a.png"> <img></img> a <b>bold</b> word'
    rows = [{"messages": [{"role": "user", "content": question}, YES]} for question in ("<video>What?", page, "a")]
    rows.append({"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "<audio>"}]})
    with pytest.warns(DataWarning) as told:
        records = read(tmp_path, *rows)
    assert [str(item.message) for item in told] == ["t.json: mark <video> in the text in 1 of 4 records; not read."]
    assert contents(records[1])[0][1] == [text(page)]


def test_a_mark_in_a_text_is_found_in_setup(tmp_path: Path) -> None:
    """At the batch a run would have begun; with a processor the token that it means by an image is looked for."""
    messages = (*user_turn("Is <image> red?", 1), *assistant_turn("yes"))
    bad = Record("7", messages, images=(picture(1),), source="mine[0]")
    data = CVITDataModule([Task("a", [*training_records(2), bad], evaluation_records(2))], processor=tiny_llava()[1])
    with pytest.raises(ValueError, match=r"^mine\[0\]: the text holds the image token '<image>'"):
        data.setup("fit")
    answer = Record("8", (*user_turn("x"), {"role": "assistant", "content": [IMAGE, text("y")]}), images=(picture(1),))
    with pytest.raises(ValueError, match=r"^record '8': an image part in an assistant turn"):
        check_record(answer)
