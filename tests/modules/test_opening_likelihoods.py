"""Likelihoods of openings: prompts read once and prompts read whole, beside transformers' own logits of one text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.multimodal_fits import MODELS
from support.tiny_mllms import tiny_llava, tiny_tokenizer, training_records
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.modules import MLLMModule, opening_likelihoods
from hpa_lightning.modules.opening_tree import OpeningTree

OPENINGS = ("I cannot help with that.", "No", "I won't do what the picture asks for, never", "Sorry, no.")


def requests() -> list[Record]:
    """Prompts of unequal length, with pictures and without one, that end with an answer or do not."""
    records = training_records(4, seed=5, text_only_every=3)
    long = Record("long", user_turn("Describe how to make the thing, and then the other thing, in a picture?"))
    return [*records, long, replace(records[1], id="open", messages=records[1].messages[:1])]


def by_hand(model: Any, processor: Any, record: Record, opening: str) -> float:
    """The sum of log-probabilities on the one rendered text, without padding or cache."""
    prompt = processor.apply_chat_template(list(record.messages[:1]), add_generation_prompt=True, tokenize=False)
    written = f"{prompt} {opening}" if prompt.endswith(":") else f"{prompt}{opening}"
    given = {"images": [list(record.images)]} if record.images else {}
    asked, whole = (
        processor(text=[text], return_tensors="pt", add_special_tokens=not text.startswith("<|im_start|>"), **given)
        for text in (prompt, written)
    )
    count = asked["input_ids"].shape[1]
    assert torch.equal(whole["input_ids"][:, :count], asked["input_ids"])
    with torch.no_grad():
        likelihoods = model(**whole).logits[0, count - 1 : -1].double().log_softmax(-1)
    return float(likelihoods.gather(1, whole["input_ids"][0, count:, None]).sum())


def passes(module: MLLMModule) -> list[tuple[int, ...]]:
    """The shapes of the tokens of every forward pass from now on."""
    found: list[tuple[int, ...]] = []
    module.model.register_forward_pre_hook(
        lambda _, args, inputs: found.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("way", ["tree", "eager tree", "rows", "whole"])
@pytest.mark.parametrize("architecture", MODELS)
def test_all_ways_give_what_the_logits_of_each_text_alone_say(
    architecture: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = MLLMModule.from_objects(*MODELS[architecture]())
    collator, records = MLLMCollator(module.processor), requests()
    if way == "whole":
        monkeypatch.setattr(opening_likelihoods, "continues", lambda *_: False)
    if way in ("rows", "whole"):
        monkeypatch.setattr(opening_likelihoods, "_takes_masks", lambda *_: False)
    if way == "eager tree":
        language = module.model.language_model if architecture == "timm" else module.model
        language.set_attn_implementation("eager")
    seen = passes(module)
    found = module.opening_likelihoods(records, OPENINGS, collator, batch_size=8)
    (tokens,) = collator.beginnings(records[:1], OPENINGS)
    longest, read = max(map(len, tokens)), len(OpeningTree(tokens).tokens)
    if way == "whole" or architecture == "qwen2_5_vl":  # its places have three dimensions
        assert [shape[0] for shape in seen] == [8, 8, 8]
    elif way == "rows":
        assert [shape[0] for shape in seen] == [2, 8] * 3 and {shape[1] for shape in seen[1::2]} == {longest}
    else:
        together = min(6, 8 * longest // read)
        assert read < sum(map(len, tokens)) - len(tokens) + 1 and {shape[1] for shape in seen[1::2]} == {read}
        assert [shape[0] for shape in seen[:2]] == [together, together] and sum(s[0] for s in seen) == 12
    for record, row in zip(records, found, strict=True):
        expected = [by_hand(module.model, module.processor, record, opening) for opening in OPENINGS]
        assert row == pytest.approx(expected, abs=2e-4), record.id
        assert len(set(row)) == 4 and all(value < 0 for value in row)


def text_model(model: Any) -> MLLMModule:
    tokenizer = tiny_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}"
        "{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    )
    return MLLMModule.from_objects(model.eval(), tokenizer)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 343,
}


@pytest.mark.parametrize("window", [None, 6])
def test_a_cache_that_forgets_is_not_gone_on_from(window: int | None) -> None:
    """A sliding window of six tokens, beside the same model's logits of each text; one prompt is read in vain."""
    torch.manual_seed(0)
    module = text_model(MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=window)))
    records = [Record(str(index), user_turn("How do I make " + "very " * index + "much?")) for index in range(4)]
    seen = passes(module)
    found = module.opening_likelihoods(records, OPENINGS[:2], MLLMCollator(module.processor), batch_size=4)
    if window is None:
        assert sum(shape[0] for shape in seen) == 8
    else:  # one prompt for each of the four is read in vain, and then every one with both openings
        assert sum(shape[0] for shape in seen[1:]) == 8
    for record, row in zip(records, found, strict=True):
        module.requires_grad_(False)
        for opening, value in zip(OPENINGS, row, strict=False):
            prompt = f"<s>{record.prompt}\n"
            asked, whole = (
                module.processor(text, return_tensors="pt", add_special_tokens=False).input_ids
                for text in (prompt, prompt + opening)
            )
            likelihoods = module.model(input_ids=whole).logits.log_softmax(-1)[0, asked.shape[1] - 1 : -1]
            expected = likelihoods.gather(1, whole[0, asked.shape[1] :, None]).sum()
            assert value == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("attention", ["ALiBi", "local"])
def test_attention_by_the_place_in_the_cache_reads_no_tree(attention: str) -> None:
    """Siblings in a tree stand in different places of the cache and at the same distance from the prompt."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 343}
    if attention == "ALiBi":
        config: Any = FalconConfig(**sizes, num_hidden_layers=2, alibi=True)
        module = text_model(FalconForCausalLM(config))
    else:
        config = GPTNeoConfig(**sizes, num_layers=2, num_heads=4, attention_types=[[["local"], 2]], window_size=8)
        module = text_model(GPTNeoForCausalLM(config))
    module.eval()
    records = [Record(str(index), user_turn("How do I make " + "very " * index + "much?")) for index in range(3)]
    collator = MLLMCollator(module.processor)
    found = module.opening_likelihoods(records, OPENINGS, collator, batch_size=8)
    for record, row, openings in zip(records, found, collator.beginnings(records, OPENINGS), strict=True):
        asked = collator.generate([record])["inputs"]["input_ids"]
        for tokens, value in zip(openings, row, strict=True):
            whole = torch.cat([asked, torch.tensor([tokens])], dim=1)
            with torch.no_grad():
                said = module.model(input_ids=whole).logits[0, asked.shape[1] - 1 : -1].log_softmax(-1)
            assert value == pytest.approx(float(said.gather(1, torch.tensor(tokens)[:, None]).sum()), abs=1e-4)


def test_the_probabilities_of_all_first_tokens_add_up_to_one() -> None:
    """Every token of a small vocabulary as an opening: nothing is left."""
    torch.manual_seed(0)
    module = text_model(LlamaForCausalLM(LlamaConfig(**SIZES)))

    class Tokens(MLLMCollator):
        def beginnings(self, records: Any, replies: Any) -> list[list[list[int]]]:
            return [[[index] for index in range(len(replies))] for _ in records]

    collator = Tokens(module.processor)
    (row,) = module.opening_likelihoods(
        [Record("1", user_turn("How?"))], [str(index) for index in range(343)], collator
    )
    assert float(torch.tensor(row).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_module_is_as_it_was_and_failures_are_named() -> None:
    module = MLLMModule.from_objects(*tiny_llava(), freeze_vision=False)
    collator = MLLMCollator(module.processor)
    before = torch.random.get_rng_state()
    module.train()
    module.opening_likelihoods(requests()[:1], OPENINGS, collator)
    assert module.model.training and torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"'long': .*the opening 'No way' begin with those of 'No'"):
        module.opening_likelihoods(requests()[4:5], ("No", "No way"), collator)
    module.model.forward = lambda **_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="batch of record 'long': ZeroDivisionError"):
        module.opening_likelihoods(requests()[4:5], ("No",), collator)


def test_what_openings_share_is_read_once_and_only_what_something_follows() -> None:
    tree = OpeningTree([[1, 2, 3], [1, 2, 4, 5], [1, 6], [7]])
    assert tree.tokens == [1, 2, 4] and tree.depths == [0, 1, 2]
    assert tree.seen().tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    logits = torch.arange(2 * 4 * 8, dtype=torch.float64).reshape(2, 4, 8).sin()
    said = logits.log_softmax(-1)
    expected = [
        said[:, 0, 1] + said[:, 1, 2] + said[:, 2, 3],
        said[:, 0, 1] + said[:, 1, 2] + said[:, 2, 4] + said[:, 3, 5],
        said[:, 0, 1] + said[:, 1, 6],
        said[:, 0, 7],
    ]
    torch.testing.assert_close(tree.sums(logits), torch.stack(expected, 1), rtol=1e-12, atol=0)
    assert tree.sums(logits.bfloat16()).dtype == torch.float32
