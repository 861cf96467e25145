"""The turns of a conversation: images' marks stay in theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.chat_files import IMAGE, SHAREGPT, YES, contents, read, text
from support.tiny_mllms import evaluation_records, picture, tiny_llava, tiny_qwen, training_records

from hpa_lightning.data import CVITDataModule, EvaluationSet, HubDataset, Record, Task
from hpa_lightning.data.benchmarks import CaptionedImages
from hpa_lightning.data.checking import check_stream
from hpa_lightning.data.record import assistant_turn, check_record, user_turn
from hpa_lightning.data.tasks import HarmfulInjection, SafetyReplay


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


def test_a_mark_in_a_text_is_found_in_setup(tmp_path: Path) -> None:
    """At the batch a run would have begun; with a processor the token that it means by an image is looked for."""
    messages = (*user_turn("Is <image> red?", 1), *assistant_turn("yes"))
    bad = Record("7", messages, images=(picture(1),), source="mine[0]")
    data = CVITDataModule([Task("a", [*training_records(2), bad], evaluation_records(2))], processor=tiny_llava()[1])
    with pytest.raises(ValueError, match=r"^mine\[0\]: the text holds the image token '<image>'"):
        data.setup("fit")
    (train,) = (part for part in check_stream(data, data.collator, token_samples=1) if part.use == "train")
    assert ["mine[0]" in text for text in train.problems["samples that do not fit the model"]] == [True]


MARKED = Record("7", user_turn("Is <image> red?"), answers=("yes",), source="mine[0]")
LEARNT = replace(MARKED, messages=(*MARKED.messages, *assistant_turn("yes")), answers=())
PLAIN = replace(LEARNT, messages=(*user_turn("Is it red?"), *assistant_turn("yes")))


@pytest.mark.parametrize(
    "settings",
    [
        {"train": [LEARNT]},
        {"train": [replace(PLAIN, rejected="<image>")], "objective": "preference"},
        {"test": [MARKED]},
        {"calibration": [LEARNT]},
        {"safety_sets": [EvaluationSet("s", "safety", [MARKED])]},
        {
            "safety_sets": [
                EvaluationSet("s", "helpfulness", [replace(PLAIN, choices=("yes", "<image>"))], "choice_accuracy")
            ]
        },
        {"harmful_calibration": [MARKED]},
        {"safety_replay": SafetyReplay([LEARNT], share=0.5)},
        {"harmful_injection": HarmfulInjection([LEARNT], ratio=0.5)},
        {"predict_data": [MARKED]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_mark_is_found_in_setup_wherever_records_are(settings: dict[str, Any]) -> None:
    of_task = {key: settings[key] for key in ("train", "test", "calibration", "objective") if key in settings}
    others = {key: value for key, value in settings.items() if key not in of_task}
    task = Task(**{"name": "a", "train": training_records(2), "test": evaluation_records(2, 4), **of_task})
    data = CVITDataModule([task], processor=tiny_llava()[1], **others)
    with pytest.raises(ValueError, match=r"^mine\[0\]: the text holds the image token '<image>'"):
        data.setup("predict" if "predict_data" in settings else "fit")


def test_tokens_of_other_media_are_found_too() -> None:
    """Qwen's processor would look for the video; without one the model would read the token as one."""
    video = replace(PLAIN, messages=(*user_turn("What is <|video_pad|>?"), *assistant_turn("yes")))
    data = CVITDataModule([Task("a", [video], evaluation_records(2))], processor=tiny_qwen()[1])
    with pytest.raises(ValueError, match=r"^mine\[0\]: the text holds the video token '<\|video_pad\|>'"):
        data.setup("fit")


def test_a_picture_in_an_answer_is_refused() -> None:
    answer = Record("8", (*user_turn("x"), {"role": "assistant", "content": [IMAGE, text("y")]}), images=(picture(1),))
    with pytest.raises(ValueError, match=r"^record '8': an image part in an assistant turn"):
        check_record(answer)
