"""One decoding setting for each set, recorded as it was used; empty and cut answers are counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_mllms import (
    evaluation_records,
    tiny_idefics3,
    tiny_llava,
    tiny_qwen,
    tiny_tokenizer,
    training_records,
)
from tokenizers import AddedToken
from transformers import GenerationConfig

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.command_results import CommandResults
from hpa_lightning.data import CVITDataModule, EvaluationSet, MLLMCollator, Task
from hpa_lightning.decoding import decoded, decoding_of, ended
from hpa_lightning.metrics import exact_match, option_accuracy
from hpa_lightning.metrics.judges.judged_text import given_answer
from hpa_lightning.metrics.scoring import is_blank
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.report import method_table
from hpa_lightning.report.run_tables import answers_table, matrix_table, run_table, safety_table, score_table
from hpa_lightning.results.predictions import read_predictions
from hpa_lightning.results.run_results import RunResults


def greedy(module: MLLMModule, batch: dict[str, Any], steps: int) -> list[int]:
    """The likeliest tokens one by one, by the plain forward pass."""
    inputs = {key: value for key, value in batch["inputs"].items() if key != "mm_token_type_ids"}
    prompt = inputs["input_ids"].shape[1]
    module.eval()
    for _ in range(steps):
        with torch.no_grad():
            following = module.model(**inputs).logits[:, -1].argmax(dim=-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], following], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][0, prompt:].tolist()


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen, tiny_idefics3])
def test_the_models_file_of_decoding_settings_does_not_leak(build: Any) -> None:
    """Qwen2.5-VL's own has a repetition penalty, and samples."""
    model, processor = build()
    module = MLLMModule.from_objects(model, processor)
    batch = MLLMCollator(processor).generate(evaluation_records(1))
    tokens = greedy(module, batch, 4)
    leaky = {"repetition_penalty": 30.0, "num_beams": 3, "do_sample": True, "suppress_tokens": tokens}
    model.generation_config = GenerationConfig(**leaky, eos_token_id=model.generation_config.eos_token_id)
    with pytest.warns(UserWarning, match=r"generation_config asks for .*'repetition_penalty': 30.0") as told:
        first = module.generate(batch, max_new_tokens=4)
        second = module.generate(batch, max_new_tokens=4)
    assert len([item for item in told if "generation_config asks for" in str(item.message)]) == 1
    assert first == second == [processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()]
    assert model.generation_config.repetition_penalty == 30.0  # the model is left as it was
    # Asked for, they count.
    own = MLLMModule.from_objects(model, processor, generation={"suppress_tokens": tokens})
    assert own.generate(batch, max_new_tokens=4) != first
    assert own.decoding(4)["suppress_tokens"] == tokens


def test_what_is_recorded_repeats_the_answer() -> None:
    """Another program's `generate` with the recorded settings alone."""
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor, generation={"num_beams": 2, "length_penalty": 0.5})
    batch = MLLMCollator(processor).generate(evaluation_records(2))
    answers = module.generate(batch, max_new_tokens=5)
    decoding = module.decoding(5)
    assert decoding["num_beams"] == 2 and decoding["length_penalty"] == 0.5 and decoding["max_new_tokens"] == 5
    model.generation_config = GenerationConfig()
    tokens = model.eval().generate(**batch["inputs"], **decoding)[:, batch["inputs"]["input_ids"].shape[1] :]
    assert answers == [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def test_stop_strings_end_an_answer_and_are_not_part_of_it() -> None:
    model, processor = tiny_llava()
    batch = MLLMCollator(processor).generate(evaluation_records(3))
    plain = MLLMModule.from_objects(model, processor)
    whole = plain.generate(batch, max_new_tokens=8)
    stop = whole[0][3:5]
    module = MLLMModule.from_objects(model, processor, generation={"stop_strings": [stop]})
    stopped = module.generate(batch, max_new_tokens=8)
    for before, after, cut in zip(whole, stopped, stopped.cut, strict=True):
        assert after == before.split(stop)[0].strip()
        assert cut is (stop not in before)


def test_which_answers_the_limit_cut() -> None:
    decoding = {"max_new_tokens": 3, "eos_token_id": [9, 8], "stop_strings": ["x"]}
    tokens = torch.tensor([[1, 2, 3], [1, 9, 0], [1, 2, 8], [4, 5, 6]])
    assert ended(tokens, ["a", "b", "c", "dxe"], decoding) == (["a", "b", "c", "d"], [True, False, False, False])
    assert ended(tokens[:, :2], ["a", "b", "c", "d"], decoding)[1] == [False] * 4  # something else ended them
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(model, processor)
    batch = MLLMCollator(processor).generate(evaluation_records(2))
    third = greedy(module, MLLMCollator(processor).generate(evaluation_records(2)[:1]), 3)[2]
    assert module.generate(batch, max_new_tokens=3).cut == [True, True]
    module._stop_token_ids = [third]
    assert module.generate(batch, max_new_tokens=3).cut[0] is False


def test_a_stop_that_is_an_added_token_is_no_part_of_the_answer() -> None:
    """Whether the tokenizer marks it as special or not; a stop of the ordinary vocabulary is."""
    tokenizer = tiny_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<|im_end|>", "<b>")])
    said, word = tokenizer("<b>yes it is", add_special_tokens=False)["input_ids"], tokenizer("yes")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = torch.tensor([[*said, end, tokenizer.pad_token_id], [*said, *said[:2]]])
    stops = [end, tokenizer.eos_token_id, word[-1]]
    assert decoded(tokens, tokenizer, {"eos_token_id": stops})[0] == "<b>yes it is"
    assert decoded(tokens, tokenizer, {"eos_token_id": end})[1].startswith("<b>yes it is<b>")
    assert decoded(tokens[:1], tokenizer, {"eos_token_id": None}) == ["<b>yes it is<|im_end|>"]


def test_the_longest_answer_is_the_sets_then_the_modules_then_the_kinds() -> None:
    objects = tiny_llava()
    plain = MLLMModule.from_objects(*objects)
    longer = MLLMModule.from_objects(*objects, generation={"max_new_tokens": 256})
    data = CVITDataModule(
        [
            Task("a", training_records(1), evaluation_records(1)),
            Task("b", training_records(1), evaluation_records(1), max_new_tokens=5),
        ],
        [EvaluationSet("harm", "safety", evaluation_records(1))],
    )
    limits = [
        [decoding_of(item, module)["max_new_tokens"] for item in data.evaluation_sets()] for module in (plain, longer)
    ]
    assert limits == [[16, 5, 64], [256, 5, 256]]
    assert plain.decoding()["max_new_tokens"] == 64 and longer.decoding()["max_new_tokens"] == 256
    assert decoding_of(data.evaluation_sets()[0], object()) == {"max_new_tokens": 16}  # somebody else's module


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 3}, r"unknown \['max_tokens'\]"),
        ({"max_length": 3}, "max_length=3; expected max_new_tokens"),
        ({"num_return_sequences": 2}, "one answer"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 12.0}, r"max_new_tokens=12.0; expected a whole number"),
        ({"max_new_tokens": True}, r"max_new_tokens=True; expected a whole number"),
        ({"num_beams": 0}, "num_beams=0; expected a whole number of at least 1"),
        ({"do_sample": "false"}, "do_sample='false'; expected true or false"),
        ({"temperature": 0}, "temperature=0; expected a number above 0; greedy decoding has none"),
        ({"temperature": 0.7}, "generate would ignore: `temperature`: `do_sample` is not set"),  # it would be recorded
        ({"length_penalty": 2.0}, "generate would ignore: `length_penalty`: `num_beams` is set to None"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0; expected a number above 0"),
        ({"stop_strings": [""]}, "a text or a list of texts, none of them empty"),
        ({"stop_strings": [3]}, "a text or a list of texts"),
        ({"max_time": 5.0}, "depend on the machine's speed"),
        ({"output_scores": True}, "one answer"),
    ],
)
def test_settings_that_generate_would_swallow_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLLMModule.from_objects(*tiny_llava(), generation=settings)


def test_settings_that_say_nothing_are_left_out() -> None:
    module = MLLMModule.from_objects(*tiny_llava(), generation={"stop_strings": [], "top_k": None, "num_beams": 2})
    assert module.generation == {"num_beams": 2}
    assert MLLMModule.from_objects(*tiny_llava(), generation={"eos_token_id": None}).decoding(3)["eos_token_id"] is None


def test_predict_answers_a_set_as_test_does(tmp_path: Path) -> None:
    """With the set's own limit, which the answers say, and whether it cut them."""
    module = MLLMModule.from_objects(*tiny_llava())
    harm = EvaluationSet("harm", "safety", evaluation_records(2, seed=5), max_new_tokens=3)
    data = CVITDataModule([Task("a", training_records(1), evaluation_records(2), max_new_tokens=2)], [harm])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    results = CommandResults("predict", tmp_path)
    trainer: Any = L.Trainer(**quiet, callbacks=[results], default_root_dir=tmp_path)  # type: ignore[arg-type]
    trainer.predict(module, data)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["set"], row["decoding"]) for row in rows] == [("a", module.decoding(2))] * 2 + [
        ("harm", module.decoding(3))
    ] * 2
    for row, item in zip(rows[::2], data.evaluation_sets(), strict=True):
        batch = next(iter(data.evaluation_dataloader(item)))
        expected = module.generate(batch, max_new_tokens=item.max_new_tokens)
        assert (row["response"], row["cut"]) == (expected[0], expected.cut[0])


class Silent(MLLMModule):
    """Falls silent once it was trained."""

    def generate(self, batch: dict[str, Any], max_new_tokens: int | None = None) -> Any:
        answers = super().generate(batch, max_new_tokens)
        if self.trainer.global_step > 0:
            answers[:] = [" "] * len(answers)
        return answers


def test_empty_and_cut_answers_stand_in_every_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Silent.from_objects(*tiny_llava(), lora=LoraSettings(rank=2))
    harm = EvaluationSet("harm", "safety", evaluation_records(3, seed=5), max_new_tokens=2)
    data = CVITDataModule([Task("a", training_records(2), evaluation_records(2, seed=4), steps=1)], [harm])
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=tmp_path,
        callbacks=[SequentialTuning(), TaskEvaluation()],
    )
    with pytest.warns(
        UserWarning, match=r"after a gives mostly empty answers \(a 2 of 2, harm 3 of 3\).*broken"
    ) as told:
        trainer.fit(module, datamodule=data)
    assert len([item for item in told if "mostly empty" in str(item.message)]) == 1  # not of the aligned model
    run = RunResults.from_file(tmp_path)
    assert run.answers(0)["harm"] == {"n": 3, "empty": 3, "cut": 3} and run.answers(-1)["harm"]["empty"] < 2
    assert run.decodings()["harm"] == module.decoding(2) and run.decodings()["a"]["max_new_tokens"] == 16
    for table in (run_table([run]), method_table([run]), matrix_table(run), safety_table(run)):
        assert list(table.columns[-2:]) == ["Empty %", "Cut %"]
        last = table.rows[-1][-2]
        assert (last if isinstance(last, float) else last.mean) == 100.0
    before = 100 * run.answers(-1)["harm"]["empty"] / 3  # random weights write half a character now and then
    assert answers_table(run).rows[-2] == ["harm", "Empty %", before, 100.0]
    assert list(score_table([run]).columns[-2:]) == ["empty_percent", "cut_percent"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Empty and cut answers" in page and "repetition_penalty 1.0" in page
    rows = {(item.step, item.set): item.rows for item in read_predictions(tmp_path)}
    assert rows[-1, "harm"][0]["cut"] is True and rows[-1, "harm"][0]["decoding"] == module.decoding(2)


@pytest.mark.parametrize(
    ("marks", "thoughts"),
    [
        (("<think>", "</think>"), "<think>Is it A?</think>"),
        (("[THINK]", "[/THINK]"), "[THINK]Is it A?[/THINK]"),
        (("\u25c1think\u25b7", "\u25c1/think\u25b7"), "\u25c1think\u25b7Is it A?\u25c1/think\u25b7"),
        (
            ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
            "<|channel|>analysis<|message|>Is it A?<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
    ids=["think", "Magistral", "Kimi", "gpt-oss"],
)
def test_special_tokens_that_end_thoughts_stay_in_answers(marks: tuple[str, ...], thoughts: str) -> None:
    """Without them "Is it A?B" was the answer."""
    tokenizer = tiny_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, marks)
    tokens = torch.tensor([tokenizer(f"{thoughts}B</s><pad>", add_special_tokens=False)["input_ids"]])
    (text,) = decoded(tokens, tokenizer, {"eos_token_id": [tokenizer.eos_token_id]})
    assert text.endswith("B") and "<pad>" not in text
    assert float(option_accuracy([text], [("B",)])) == float(exact_match([text], [("B",)])) == 1


def test_thoughts_that_the_prompt_begins_are_known_as_thoughts() -> None:
    """Templates of reasoning models write the first mark themselves, so that it is not in the answer."""
    model, processor = tiny_qwen()
    processor.chat_template = processor.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    module = MLLMModule.from_objects(model, processor)
    batch = MLLMCollator(processor).generate(evaluation_records(2))
    assert batch["prompts"][0].endswith("<think>\n")
    with pytest.warns(UserWarning, match="2 of 2 answers .* cut within their thoughts, at max_new_tokens=3") as told:
        answers = [module.generate(batch, max_new_tokens=3) for _ in range(2)][1]
    assert len([one for one in told if "within their thoughts" in str(one.message)]) == 1
    assert answers.cut == [True, True]
    assert all(answer.startswith("<think>") and given_answer(answer) == "" for answer in answers)


def test_silence_behind_a_mark_of_thoughts_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_qwen()
    processor.chat_template = processor.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    silence = torch.full((2, 3), processor.tokenizer.pad_token_id)
    monkeypatch.setattr(model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], silence], dim=1))
    batch = MLLMCollator(processor).generate(evaluation_records(2))
    answers = MLLMModule.from_objects(model, processor).generate(batch, max_new_tokens=3)
    assert list(answers) == ["", ""] and is_blank("[THINK][/THINK]")
