"""How answers are generated: one resolved setting for each evaluation set, and what became of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from hpa_lightning.metrics.judges.judged_text import marks_thoughts

#: Longest answers in tokens, by the kind of the evaluation set, where neither the set nor the module names one.
LONGEST_ANSWER: dict[str, int] = {"task": 16, "safety": 64, "over_refusal": 64, "helpfulness": 16}

#: What decides an answer and is recorded whatever its value.
_GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
#: What a model's file may hold without deciding its answers, or what every call decides.
_NOT_DECODING = (
    *(
        "transformers_version",
        "_from_model_config",
        "max_length",
        "max_new_tokens",
        "use_cache",
        "cache_implementation",
    ),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
)
_REFUSED = {
    "max_length": "max_new_tokens",
    "max_time": "nothing: answers would depend on the machine's speed",
    **dict.fromkeys(
        ("num_return_sequences", "return_dict_in_generate", "generation_config", "output_scores", "output_logits"),
        "nothing: every prompt gets one answer",
    ),
}
_POSITIVE = ("temperature", "repetition_penalty", "top_p", "typical_p")
_COUNTS = ("max_new_tokens", "min_new_tokens", "num_beams", "no_repeat_ngram_size", "top_k")
_AT_LEAST_ONE = ("max_new_tokens", "num_beams")


class Answers(list[str]):
    """Answers, and which of them the limit on new tokens cut off.

    Args:
        texts: the answers.
        cut: of each one, whether it had not ended when the limit was reached.
    """

    def __init__(self, texts: Iterable[str], cut: Iterable[bool]) -> None:
        super().__init__(texts)
        self.cut = list(cut)


def check_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check a user's arguments of ``model.generate``; those that are ``None`` or an empty list are left out.

    Raises:
        ValueError: one that ``GenerationConfig`` does not have, that would change what ``generate`` returns, that has a
            value of the wrong kind, or that ``generate`` would ignore (``temperature`` without ``do_sample``).
    """
    known = vars(GenerationConfig())
    unknown = sorted(key for key in settings if key not in known and key not in _REFUSED)
    if unknown:
        raise ValueError(f"generation has the unknown {unknown}; expected arguments of transformers' GenerationConfig.")
    # `eos_token_id: null` asks for answers that continue to the limit.
    settings = {key: value for key, value in settings.items() if value not in (None, []) or key == "eos_token_id"}
    for key, value in settings.items():
        if expected := _REFUSED.get(key) or _other_kind(key, value):
            raise ValueError(f"generation has {key}={value!r}; expected {expected}.")
    config = GenerationConfig()
    for key, value in settings.items():
        setattr(config, key, value)  # the constructor logs what is raised here
    try:
        config.validate(strict=True)
    except ValueError as error:
        reason = next((line for line in str(error).splitlines() if line.startswith("- ")), str(error))
        ignored = f"generation has what generate would ignore: {reason.removeprefix('- ').strip()}"
        raise ValueError(f"{ignored} Answers are greedy unless `generation` says otherwise.") from error
    return dict(settings)


def _other_kind(key: str, value: Any) -> str | None:
    """What was expected, where a setting's value is of another kind."""
    if key == "do_sample" and not isinstance(value, bool):
        return "true or false"
    if key in _COUNTS:
        least = int(key in _AT_LEAST_ONE)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"a whole number of at least {least}"
    if key in _POSITIVE and (isinstance(value, bool | str) or not value > 0):
        return "a number above 0" + ("; greedy decoding has none" if key == "temperature" else "")
    if key == "stop_strings":
        strings = [value] if isinstance(value, str) else value
        if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
            return "a text or a list of texts, none of them empty"
    return None


def resolve(settings: Mapping[str, Any], max_new_tokens: int, stops: Sequence[int], pad: int | None) -> dict[str, Any]:
    """Return everything that decides an answer; what is not named is at transformers' default.

    Args:
        settings: the user's.
        max_new_tokens: longest answer.
        stops: ids of the tokens that end an answer, unless ``settings`` name others.
        pad: id of the padding token, likewise.
    """
    sampling = _SAMPLING if settings.get("do_sample") else {}
    found = {**_GREEDY, **sampling, "eos_token_id": list(stops), "pad_token_id": pad, **settings}
    return {**found, "max_new_tokens": max_new_tokens}


def decoding_of(evaluation_set: Any, pl_module: Any) -> dict[str, Any]:
    """Return the one decoding setting of an evaluation set, as ``pl_module.generate`` uses it.

    The longest answer is the set's own ``max_new_tokens``; else that of the module's ``generation``; else
    :data:`LONGEST_ANSWER` by the set's kind. A foreign module, without ``decoding(max_new_tokens)``, is only
    known to keep to the longest answer.
    """
    limit = evaluation_set.max_new_tokens
    if limit is None:
        limit = (getattr(pl_module, "generation", None) or {}).get("max_new_tokens")
    if limit is None:
        limit = LONGEST_ANSWER[evaluation_set.kind]
    tell = getattr(pl_module, "decoding", None)
    return tell(limit) if callable(tell) else {"max_new_tokens": limit}


@contextmanager
def own_decoding(model: Any) -> Any:
    """Set the model's ``generation_config`` aside: ``generate`` fills in from it whatever a call leaves open."""
    before = getattr(model, "generation_config", None)
    if before is None:
        yield
        return
    model.generation_config = GenerationConfig(**{key: getattr(before, key, None) for key in _TOKEN_IDS})
    try:
        yield
    finally:
        model.generation_config = before


def set_aside(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model's ``generation_config`` asks for and the answers are generated without."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    skipped = {*_TOKEN_IDS, *_NOT_DECODING, *settings}
    if not settings.get("do_sample"):
        skipped |= {*_SAMPLING, "min_p", "typical_p"}
    neutral = {**GenerationConfig().to_diff_dict(), **_GREEDY}
    return {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in skipped and value is not None and neutral.get(key) != value
    }


def decoded(tokens: Tensor, tokenizer: Any, decoding: Mapping[str, Any]) -> list[str]:
    """Return the answers as text, without special tokens and without added tokens that end an answer.

    Special tokens that part thoughts from the answer stay: without them nothing could tell the two.

    Args:
        tokens: what was generated, ``(answers, tokens)``.
        tokenizer: its added tokens need not be marked as special.
        decoding: as :func:`resolve` made it.
    """
    added = tokenizer.added_tokens_decoder
    left_out = set(_stop_ids(decoding)) & set(added)
    special = {number for number, token in added.items() if token.special}
    if parting := {number for number in special - left_out if marks_thoughts(str(added[number]))}:
        left_out |= special - parting
    rows = [[token for token in row if token not in left_out] for row in tokens.tolist()]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=not parting)
    return texts


def ended(tokens: Tensor, texts: Sequence[str], decoding: Mapping[str, Any]) -> tuple[list[str], list[bool]]:
    """Cut answers at their stop strings, and report which ones the limit cut off.

    Args:
        tokens: what was generated, ``(answers, tokens)``, padded behind an answer's end.
        texts: the same, decoded.
        decoding: as :func:`resolve` made it.

    Returns:
        The answers up to their first stop string, which is left out; and of each whether ``max_new_tokens`` ended it.
    """
    stops = torch.tensor(_stop_ids(decoding), device=tokens.device, dtype=tokens.dtype)
    full = tokens.shape[1] >= decoding["max_new_tokens"]
    finished = torch.isin(tokens, stops).any(dim=1).tolist()
    strings = decoding.get("stop_strings") or ()
    strings = [strings] if isinstance(strings, str) else list(strings)
    answers, cut = [], []
    for text, done in zip(texts, finished, strict=True):
        places = [place for place in (text.find(string) for string in strings) if place >= 0]
        answers.append(text[: min(places)] if places else text)
        cut.append(full and not done and not places)
    return answers, cut


def _stop_ids(decoding: Mapping[str, Any]) -> list[int]:
    stops = decoding["eos_token_id"]
    return [stops] if isinstance(stops, int) else list(stops or [])
