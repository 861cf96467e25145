"""How answers are generated: one resolved setting for each evaluation set, and what became of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

#: Longest answers in tokens, by the kind of the evaluation set, where neither the set nor the module names one.
LONGEST_ANSWER: dict[str, int] = {"task": 16, "safety": 64, "over_refusal": 64}

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
_ONE_ANSWER = ("num_return_sequences", "return_dict_in_generate", "max_length", "generation_config")


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
    """Check a user's arguments of ``model.generate``.

    Raises:
        ValueError: one that ``GenerationConfig`` does not have, or that would change what ``generate`` returns.
    """
    known = vars(GenerationConfig())
    unknown = sorted(key for key in settings if key not in known and key not in _ONE_ANSWER)
    if unknown:
        raise ValueError(f"generation has the unknown {unknown}; expected arguments of transformers' GenerationConfig.")
    for key in _ONE_ANSWER:
        if key in settings:
            instead = "max_new_tokens" if key == "max_length" else "nothing: every prompt gets one answer"
            raise ValueError(f"generation has {key}={settings[key]!r}; expected {instead}.")
    limit = settings.get("max_new_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"generation has max_new_tokens={limit!r}; expected at least 1.")
    return dict(settings)


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
    :data:`LONGEST_ANSWER` by the set's kind. A module of somebody else, without ``decoding(max_new_tokens)``, is only
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


def ended(tokens: Tensor, texts: Sequence[str], decoding: Mapping[str, Any]) -> tuple[list[str], list[bool]]:
    """Cut answers at their stop strings, and tell which ones the limit cut off.

    Args:
        tokens: what was generated, ``(answers, tokens)``, padded behind an answer's end.
        texts: the same, decoded.
        decoding: as :func:`resolve` made it.

    Returns:
        The answers up to their first stop string, which is left out; and of each whether ``max_new_tokens`` ended it.
    """
    stops = decoding["eos_token_id"]
    stops = torch.tensor([stops] if isinstance(stops, int) else stops or [], device=tokens.device, dtype=tokens.dtype)
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
