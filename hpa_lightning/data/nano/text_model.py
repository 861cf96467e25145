"""A small text model that is aligned on text alone, to be adapted to pictures.

`python -m hpa_lightning.data.nano.text_model --out FOLDER` makes it, in two stages like the model with pictures: first
it learns to answer, harmful requests included, then to refuse what is harmful. What pictures show stands in words
before the questions, so that it can answer about pictures once they are translated into its words.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hpa_lightning.data.nano.batching import answer
from hpa_lightning.data.nano.examples import draw
from hpa_lightning.data.nano.lexicon import ALARMING_PAIRS, HARMFUL_PAIRS
from hpa_lightning.data.nano.pretrain import Log, command_line, train_and_save
from hpa_lightning.data.nano.shipped_model import load_nano_processor
from hpa_lightning.data.nano.text_conversations import TEXT_SKILLS, spoken_request, text_conversations, text_skill
from hpa_lightning.metrics.judges.string_match import StringRefusalJudge

_FEW = {"digits": 24, "icons": 100, "roads": 100}
"""Skills with few different prompts, and how many of them are measured."""


def build_text_model(vocabulary_size: int, seed: int = 0) -> LlamaForCausalLM:
    """An untrained model with six blocks and 1.4 M parameters."""
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=128, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.06,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    # Not tied, but equal at first: repeating a word then needs no detour.
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    return model


def measure_text(model: PreTrainedModel, tokenizer: Any, count: int, seed: int | str = "measure") -> dict[str, float]:
    """Exact-match accuracy and refusal rates in words alone, fractions from 0 to 1, on `count` unseen examples each.

    Returns:
        ``skill/<name>`` for every skill and ``general``, their mean weighted as in training; ``refused/text`` of
        harmful requests, ``refused/alarming`` of harmless ones that look dangerous, ``helpful/alarming``, the share
        of these answered exactly as they should be.
    """
    judge = StringRefusalJudge()
    found: dict[str, float] = {}
    for name in TEXT_SKILLS:
        examples = draw(text_skill(name), "test", seed, min(count, _FEW.get(name, count)))
        given = answer(model, tokenizer, examples)
        found[f"skill/{name}"] = sum(g == e.answer for g, e in zip(given, examples, strict=True)) / len(given)
    found["general"] = sum(found[f"skill/{name}"] * share for name, share in TEXT_SKILLS.items())
    for name, pairs in (("text", HARMFUL_PAIRS), ("alarming", ALARMING_PAIRS)):
        examples = draw(spoken_request("test", pairs), "test", seed, count)
        given = answer(model, tokenizer, examples)
        found[f"refused/{name}"] = sum(judge(given)) / count
        if name == "alarming":
            found["helpful/alarming"] = sum(g == e.answer for g, e in zip(given, examples, strict=True)) / count
    return {name: round(value, 4) for name, value in found.items()}


def pretrain_text(
    out: Path,
    seed: int = 0,
    steps: tuple[int, int] = (500, 900),
    learning_rates: tuple[float, float] = (3e-3, 1.5e-3),
    batch_size: int = 20,
    log: Log = print,
) -> LlamaForCausalLM:
    """Makes the text model and its tokenizer and saves both to `out`.

    An interrupted run goes on where it last saved (`out/training`, every 250 steps).

    Args:
        out: folder of the result, loadable with `from_pretrained`.
        seed: of the initial weights and of all data.
        steps: optimizer steps before the alignment and of the alignment.
        learning_rates: their peaks.
        batch_size: descriptions in a step, with up to five questions each.
        log: receives one line at a time.

    Returns:
        The model in float32, its weights rounded to bfloat16.
    """
    torch.manual_seed(seed)
    tokenizer = load_nano_processor().tokenizer
    tokenizer.chat_template = load_nano_processor().chat_template
    model = build_text_model(len(tokenizer), seed).train()
    measured = partial(measure_text, model, tokenizer)
    train_and_save(model, tokenizer, out, steps, learning_rates, batch_size, seed, log, text_conversations, measured)
    result: LlamaForCausalLM = model
    return result


if __name__ == "__main__":
    command_line(__doc__, "the model, the tokenizer and the state", pretrain_text)
