"""Every architecture that transformers maps to AutoModelForImageTextToText is tested, refused or named in the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.architecture_cases import CASES
from support.random_architectures import build
from support.tiny_mllms import picture
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hpa_lightning.architectures import REFUSED
from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn, message_text, user_turn
from hpa_lightning.fuse.streaming import empty_model
from hpa_lightning.modules import MLLMModule, opening_likelihoods

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
TABLE = {
    name: (status, note)
    for name, status, note in re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| ([^|]*?) ?\|$", PAGE.read_text("utf-8"), re.M)
    if name != "model_type"
}
NEWER = {"mllama", "perception_lm", "video_llava"}
"""Fail within transformers 5.12 (or timm 1.0.15) itself on these records, and pass with 5.24; see the page."""
TESTED = sorted(name for name, (status, _) in TABLE.items() if status == "tested")
CHOICES = ("red", "a blue square it is")


def record(name: str, question: str, answer: str, images: int) -> Record:
    messages = (*user_turn(question, images), *assistant_turn(answer))
    pictures = tuple(picture(len(question) + index) for index in range(images))
    return Record(name, messages, pictures, choices=CHOICES)


def unequal_records(text_only: bool) -> list[Record]:
    records = [
        record("short", "What is this?", CHOICES[0], 1),
        record("two images", "Are these two of one colour, red or not?", CHOICES[1], 2),
    ]
    return [*records, record("text", "No picture now: is it?", CHOICES[1], 0)] if text_only else records


def test_every_mapped_architecture_is_in_the_table() -> None:
    assert not set(MAPPED) - set(TABLE), "add them to docs/architectures.md"
    assert {status for status, _ in TABLE.values()} == {"tested", "refused", "not tested"}
    for name, (status, note) in TABLE.items():
        assert (status == "refused") == (name in REFUSED), name
        assert status != "refused" or note == REFUSED[name], name
        assert status == "tested" or note, name
        assert (CASES.get(name, {}).get("text_only", True)) or "image" in note, name


@pytest.mark.parametrize("model_type", TESTED)
def test_a_batch_of_unequal_records_equals_single_records(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, labels, likelihoods of choices and openings, greedy answers; an image, several images, and none."""
    if model_type not in MAPPED:
        pytest.skip("not in this version of transformers")
    if model_type in NEWER and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
        pytest.skip("this version of transformers fails by itself")
    model, processor = build(model_type)
    records = unequal_records(CASES.get(model_type, {}).get("text_only", True))
    collator, module = MLLMCollator(processor), MLLMModule.from_objects(model, processor).eval()
    batch, singles = collator.train(records), [collator.train([one]) for one in records]
    end = collator.template.end_of_turn
    for row, one in enumerate(records):
        answer = message_text(one.messages[-1]) + end
        assert _decoded(processor, batch["labels"][row]) == answer == _decoded(processor, singles[row]["labels"][0])
    tokens = [int((single["labels"][:, 1:] != -100).sum()) for single in singles]
    losses = [_loss(module, single) for single in singles]
    expected = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert _loss(module, batch) == pytest.approx(expected, abs=1e-4)
    together, one_by_one = (module.choose(records, collator, size) for size in (len(records) * 2, 1))
    for row, alone in zip(together, one_by_one, strict=True):
        assert row == pytest.approx(alone, abs=1e-4)
    openings = ("I cannot", *CHOICES)
    together = module.opening_likelihoods(records, openings, collator, len(records) * 3)
    monkeypatch.setattr(opening_likelihoods, "continues", lambda *_: False)
    for row, whole in zip(together, module.opening_likelihoods(records, openings, collator, 1), strict=True):
        assert row == pytest.approx(whole, rel=1e-4)
    answers = module.generate(collator.generate(records), max_new_tokens=2)
    assert answers == [module.generate(collator.generate([one]), max_new_tokens=2)[0] for one in records]


@pytest.mark.parametrize("model_type", ["internvl", "llama4", "aya_vision"])
def test_max_length_cuts_the_end_whichever_side_is_padded(model_type: str) -> None:
    processor = build(model_type)[1]
    long = Record("long", (*user_turn("What?", 1), *assistant_turn("red " * 30)), (picture(1),))
    whole = MLLMCollator(processor).train([long])
    limit = whole["input_ids"].shape[1] - 10
    batch = MLLMCollator(processor, max_length=limit).train([record("short", "Is it?", "red", 1), long])
    assert torch.equal(batch["input_ids"][1], whole["input_ids"][0, :limit])
    assert torch.equal(batch["labels"][1], whole["labels"][0, :limit])
    assert _decoded(processor, batch["labels"][0]) == "red<|im_end|>"


@pytest.mark.parametrize("model_type", sorted(set(REFUSED) & set(MAPPED)))
def test_what_is_refused_is_refused_before_anything_is_built(model_type: str) -> None:
    config = AutoConfig.for_model(model_type) if model_type != "vision-encoder-decoder" else None
    for refuse in (lambda: MLLMModule(config={"model_type": model_type}), lambda: empty_model(config, torch.float32)):
        if config is not None:
            with pytest.raises(ValueError, match=rf"'{model_type}' is not supported: .*docs/architectures.md"):
                refuse()
    kind = PROCESSOR_MAPPING_NAMES.get(model_type)
    if kind is not None and model_type not in ("diffusion_gemma", "t5gemma2"):  # they share Gemma's processors
        with pytest.raises(ValueError, match=rf"{kind} \(architecture '{model_type}'\) is not supported"):
            MLLMCollator(type(kind, (), {})())


def test_an_encoder_decoder_that_nobody_listed_is_refused() -> None:
    with pytest.raises(ValueError, match="'t5' is not supported: an encoder-decoder"):
        MLLMModule(config={"model_type": "t5"}, processor="none")


def _decoded(processor: Any, labels: torch.Tensor) -> str:
    return processor.tokenizer.decode(labels[labels != -100])


def _loss(module: MLLMModule, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float(module.model(**module._cast(batch), use_cache=False).loss)
