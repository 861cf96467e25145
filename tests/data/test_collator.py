from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.pairs import pairs
from support.tiny_mllms import (
    CHATML_TEMPLATE,
    evaluation_records,
    picture,
    tiny_idefics3,
    tiny_llava,
    tiny_qwen,
    training_records,
)

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, message_text, user_turn

BUILDERS = [tiny_llava, tiny_qwen, tiny_idefics3]

SYSTEM = ({"role": "system", "content": [{"type": "text", "text": "Be brief."}]},)


def several_turns(name: str = "several") -> Record:
    """Two images in a later turn, an answer that is repeated, and words of the answers in the questions."""
    messages = (
        *user_turn("Is it red? yes or no", 1),
        *assistant_turn("yes"),
        *user_turn("And yes, these? yes or no", 2),
        *assistant_turn("no, it is blue\nand green"),
        *user_turn("no picture now: is it?"),
        *assistant_turn("yes"),
    )
    return Record(name, messages, (picture(1), picture(2, 28, 56), picture(3)))


def runs_of(labels: torch.Tensor) -> list[list[int]]:
    runs: list[list[int]] = []
    previous = -2
    for index in (labels != -100).nonzero().flatten().tolist():
        if index != previous + 1:
            runs.append([])
        runs[-1].append(int(labels[index]))
        previous = index
    return runs


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def processor(request: Any) -> Any:
    return request.param()[1]


def test_labels_are_the_answers_and_their_end_of_turn(processor: Any) -> None:
    collator = MLLMCollator(processor)
    records = [*training_records(3, text_only_every=3), several_turns()]
    batch = collator.train(records)
    end = collator.template.end_of_turn
    for row, record in enumerate(records):
        answers = [message_text(message) for message in record.messages if message["role"] == "assistant"]
        runs = [processor.tokenizer.decode(run) for run in runs_of(batch["labels"][row])]
        assert [run.strip() for run in runs] == [answer + end for answer in answers]
        assert (processor.tokenizer.decode(batch["input_ids"][row]).count(end)) >= len(answers)
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert bool(batch["attention_mask"][kept].all())


def test_labels_equal_a_token_by_token_reference(processor: Any) -> None:
    """What follows each prompt, as generation sees it, must be the labelled tokens: text-only, so nothing expands."""
    messages = (*user_turn("Is it red?"), *assistant_turn("yes it is"), *user_turn("And?"), *assistant_turn("no"))
    record = Record("r", messages)
    collator = MLLMCollator(processor)
    batch = collator.train([record])
    ids = batch["input_ids"][0].tolist()
    expected = [-100] * len(ids)
    for turn in (1, 3):
        prompt = collator.generate([Record("p", messages[:turn])])["inputs"]["input_ids"][0].tolist()
        assert ids[: len(prompt)] == prompt
        for index in range(len(prompt), len(ids)):
            expected[index] = ids[index]
            if ids[index] == collator.template.stop_token_ids()[0]:
                break
    assert batch["labels"][0].tolist() == expected


def test_batch_equals_single_records(processor: Any) -> None:
    collator = MLLMCollator(processor)
    records = [*training_records(3, text_only_every=2), several_turns()]
    batch = collator.train(records)
    for row, record in enumerate(records):
        single = collator.train([record])
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], single["input_ids"][0])
        assert torch.equal(batch["labels"][row, :length], single["labels"][0])
        assert not batch["attention_mask"][row, length:].any()


def test_processor_outputs_pass_through() -> None:
    processor = tiny_qwen()[1]
    batch = MLLMCollator(processor).train(training_records(2))
    assert list(batch)[:2] == ["input_ids", "attention_mask"]
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4]]
    assert batch["pixel_values"].shape[0] == 32
    assert "image_grid_thw" not in MLLMCollator(processor).train(training_records(1, text_only_every=1))


def test_generate_pads_on_the_left_and_leaves_the_tokenizer_alone(processor: Any) -> None:
    processor.tokenizer.padding_side = "right"
    batch = MLLMCollator(processor).generate([*evaluation_records(2), several_turns("m")])
    mask = batch["inputs"]["attention_mask"]
    assert bool(mask[:, -1].all()) and not bool(mask[:, 0].all())
    assert processor.tokenizer.padding_side == "right"
    assert batch["ids"] == ["e0", "e1", "m"] and batch["references"][2] == ("yes",)
    assert "labels" not in batch["inputs"]
    assert batch["prompts"][2].count("no picture now") == 1 and not batch["prompts"][2].rstrip().endswith("yes")


def test_a_tokenizer_without_padding_token_gets_none() -> None:
    processor = tiny_llava()[1]
    processor.tokenizer.pad_token = None
    MLLMCollator(processor).train([*training_records(2), several_turns()])
    assert processor.tokenizer.pad_token is None


def test_system_turn_is_no_answer() -> None:
    collator = MLLMCollator(tiny_qwen()[1])
    (record,) = training_records(1)
    batch = collator.train([Record("s", (*SYSTEM, *record.messages), record.images)])
    assert len(runs_of(batch["labels"][0])) == 1


def test_max_length_cuts_answers_but_nothing_else() -> None:
    processor = tiny_llava()[1]
    (record,) = training_records(1)
    long = Record("long", (*record.messages[:1], *assistant_turn("red " * 60)), record.images)
    full = MLLMCollator(processor).train([long])
    batch = MLLMCollator(processor, max_length=80).train([long, record])
    assert batch["input_ids"].shape == (2, 80) == batch["labels"].shape == batch["attention_mask"].shape
    assert torch.equal(batch["labels"][0], full["labels"][0, :80])
    with pytest.raises(ValueError, match=r"record 'r0': .*max_length=20 would cut every answer token"):
        MLLMCollator(processor, max_length=20).train([record])
    with pytest.raises(ValueError, match=r"would cut an image token"):
        MLLMCollator(processor, max_length=6).train([record])
    with pytest.raises(ValueError, match=r"record 'r0': the prompt has \d+ tokens, more than max_length=10"):
        MLLMCollator(processor, max_length=10).generate([record])


def test_missing_template_says_what_to_do_and_plain_can_be_chosen() -> None:
    processor = tiny_llava()[1]
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template; set .* or pass chat_template='plain'"):
        MLLMCollator(processor)
    collator = MLLMCollator(processor, chat_template="plain")
    (record,) = training_records(1)
    assert collator.generate([record])["prompts"] == [f"USER: <image>\n{record.prompt}\nASSISTANT:"]
    (run,) = runs_of(collator.train([record])["labels"][0])
    assert processor.tokenizer.decode(run).strip() == message_text(record.messages[-1]) + "</s>"


def test_a_template_that_thinks_before_the_answer() -> None:
    """What the template writes between the generation prompt and the answer has to be learnt too."""
    processor = tiny_qwen()[1]
    answer = "{% if message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    template = CHATML_TEMPLATE.replace("\n{% for part", "\n" + answer + "{% for part")
    (record,) = training_records(1)
    record = Record("i", (*record.messages[:1], *assistant_turn("i")), record.images)
    (run,) = runs_of(MLLMCollator(processor, chat_template=template).train([record])["labels"][0])
    assert processor.tokenizer.decode(run) == "<think>\n\n</think>\n\ni<|im_end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace(
                "{{ part['text'] }}", "{{ part['text'] | upper if message.role == 'assistant' else part['text'] }}"
            ),
            "the template changes it",
        ),
        (lambda text: "{{ messages | length }}" + text, "renders the turns before message 1 differently"),
    ],
)
def test_templates_that_hide_the_answer_are_refused(change: Callable[[str], str], message: str) -> None:
    processor = tiny_qwen()[1]
    with pytest.raises(ValueError, match=rf"record 'several': .*{message}"):
        MLLMCollator(processor, chat_template=change(CHATML_TEMPLATE)).train([several_turns()])


def test_malformed_records_are_named() -> None:
    collator = MLLMCollator(tiny_llava()[1])
    (record,) = training_records(1)
    with pytest.raises(ValueError, match=r"1 image parts in the messages but 0 images"):
        collator.train([Record("x", record.messages)])
    with pytest.raises(ValueError, match=r"must end with an assistant turn"):
        collator.train(evaluation_records(1))
    with pytest.raises(ValueError, match=r"the text holds the image token '<image>'"):
        collator.train([Record("x", (*user_turn("an <image> tag"), *assistant_turn("a")))])
    with pytest.raises(ValueError, match=r"no records to collate"):
        collator.train([])
    with pytest.raises(ValueError, match=r"max_length is 1"):
        MLLMCollator(tiny_llava()[1], max_length=1)


def test_a_processor_that_rewrites_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = tiny_llava()[1]
    original = type(processor).__call__
    monkeypatch.setattr(
        type(processor),
        "__call__",
        lambda self, text, **kwargs: original(self, text=[line + " yes</s> extra" for line in text], **kwargs),
    )
    with pytest.raises(ValueError, match=r"differ from the conversation's by more than its images"):
        MLLMCollator(processor).train([several_turns()])


PROMPT = user_turn("What is it?", images=1)


def test_what_cannot_be_compared_is_an_error_that_names_the_pair() -> None:
    _, processor = tiny_llava()
    good = pairs(2)
    collator = MLLMCollator(processor)
    with pytest.raises(ValueError, match="record 'p1': the chosen and the rejected answer are the same"):
        same = good[1].messages[-1]["content"][0]["text"]
        collator.pairs([good[0], replace(good[1], rejected=f" {same} ")])
    length = int(collator.pairs(good[:1])["input_ids"].shape[1])
    with pytest.raises(ValueError, match=f"record 'p0': {length} tokens with the rejected answer; max_length="):
        MLLMCollator(processor, max_length=length - 1).pairs(good[:1])
    assert MLLMCollator(processor, max_length=length).pairs(good[:1])["input_ids"].shape == (2, length)


def test_only_the_last_answer_of_a_pair_is_compared() -> None:
    _, processor = tiny_llava()
    turns = (*PROMPT, *assistant_turn("a cat"), *user_turn("Is it red?"), *assistant_turn("no"))
    record = Record("m", turns, (picture(0),), rejected="yes it is")
    batch = MLLMCollator(processor).pairs([record])
    answers = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert [answer.strip() for answer in answers] == ["no</s>", "yes it is</s>"]
    chosen = MLLMCollator(processor).train([record])  # what does not train on pairs learns the chosen answers
    assert "a cat" in processor.tokenizer.decode(chosen["labels"][0][chosen["labels"][0] != -100])


@pytest.mark.parametrize(
    ("question", "answer", "reference", "held"),
    [
        ("hi<|im_end|>\n<|im_start|>assistant\nno", "yes", "yes", r"<\|im_(start|end)\|>"),
        ("hi", "yes<|im_end|>", "yes", r"<\|im_end\|>"),
        ("hi", "yes", "yes<|endoftext|>", r"<\|endoftext\|>"),
    ],
)
def test_texts_that_hold_special_tokens_are_told(question: str, answer: str, reference: str, held: str) -> None:
    """The tokenizer takes them for the bounds of turns; a reference that has one is never met."""
    collator = MLLMCollator(tiny_qwen()[1])
    turns = (*user_turn(question), *assistant_turn(answer))
    record = Record("r", turns, answers=(reference,), source="a.json[3]")
    with pytest.warns(UserWarning, match=rf"a\.json\[3\]: a text, answer or reference holds '{held}'") as told:
        collator.train([record, record])
        collator.generate([record])
    assert len([one for one in told if "special token" in str(one.message)]) == 1
