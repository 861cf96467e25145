"""How likely a reply begins with each of some openings; a prompt is read once where the model can go on from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hpa_lightning.data.bad_records import naming_failure
from hpa_lightning.data.collator import IGNORED
from hpa_lightning.data.padding import counts_tokens, pad_on
from hpa_lightning.data.protocols import OpeningCollator
from hpa_lightning.data.record import Record
from hpa_lightning.functional.preference_loss import answer_log_probabilities
from hpa_lightning.modules.likelihood import answer_log_likelihoods
from hpa_lightning.modules.opening_tree import OpeningTree
from hpa_lightning.modules.timm_mllm import TimmMLLM

Inputs = dict[str, Tensor]
_TEXT = ("input_ids", "attention_mask")


@torch.no_grad()
def opening_log_likelihoods(
    model: nn.Module,
    records: Sequence[Record],
    openings: Sequence[str],
    collator: OpeningCollator,
    batch_size: int,
    prepare: Callable[[Inputs], Inputs],
) -> list[list[float]]:
    """The log-probability that the reply to every prompt begins with each opening, under the model.

    A prompt is read once into a key-value cache; one short forward pass behind it reads all openings, and what several
    of them begin with once (:class:`~hpa_lightning.modules.opening_tree.OpeningTree`). Where the attention takes no
    mask for every token, each opening gets a copy of the cache instead. Where the model cannot go on at all
    (:func:`continues`, or a cache that is no plain one), every prompt is read with every opening behind it: the same
    numbers, for as many times the work as there are openings.

    Args:
        model: inputs -> an output with ``logits``, in eval mode.
        records: their prompts; a final assistant turn is cut off.
        openings: how replies begin; of their tokens, none may begin with all of another's.
        collator: makes the batches and the openings' tokens.
        batch_size: openings in one forward pass, or as many tokens as they have, but at least those of one prompt.
        prepare: inputs on the CPU -> those of the model's device and dtype.

    Returns:
        For each record one natural logarithm for each opening, the sum over its tokens.

    Raises:
        ValueError: named by the record, if its prompt cannot be collated or the tokens of an opening begin with all of
            another's.
        RuntimeError: named by the records, if the model fails.
    """
    found: list[list[float]] = []
    goes_on = True
    for part in _parts(model, records, openings, collator, batch_size):
        tokens = collator.beginnings(part, openings)
        for record, beginnings in zip(part, tokens, strict=True):
            _check_apart(record, openings, beginnings)
        shared = None
        if goes_on:
            inputs = prepare(collator.generate(part)["inputs"])
            with naming_failure(partial(_names, part)):
                shared = _continued(model, inputs, tokens) if continues(model, inputs) else None
            goes_on = shared is not None
        found += shared if shared is not None else _read_whole(model, part, tokens, collator, batch_size, prepare)
    return found


def _parts(
    model: nn.Module, records: Sequence[Record], openings: Sequence[str], collator: OpeningCollator, batch_size: int
) -> Iterator[Sequence[Record]]:
    """The records whose openings are read together."""
    together = max(1, batch_size // len(openings))
    if records and _takes_masks(model) and _counts_places(model):
        (first,) = collator.beginnings(records[:1], openings)
        together = max(1, batch_size * max(map(len, first)) // max(1, len(OpeningTree(first).tokens)))
    return (records[start : start + together] for start in range(0, len(records), together))


def continues(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether tokens behind a cached prompt need no more than their places counted from the prompt's first token.

    Not so with positions in several dimensions (the rotary embeddings of the Qwen-VL family), with further inputs that
    have an entry for each token (token types, masks of cross-attention), and of models whose ``forward`` takes no
    positions.
    """
    return _counts_places(model) and not any(counts_tokens(inputs, key) for key in inputs if key not in _TEXT)


def _counts_places(model: nn.Module) -> bool:
    own = any(hasattr(module, "get_rope_index") or hasattr(module, "rope_deltas") for module in model.modules())
    return not own and "position_ids" in _arguments(model)


def _arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What ``forward`` takes by name; ``TimmMLLM`` passes on what its language model takes."""
    reads = model.language_model if isinstance(model, TimmMLLM) else model
    return inspect.signature(reads.forward).parameters


def _continued(model: nn.Module, inputs: Inputs, tokens: Sequence[Sequence[list[int]]]) -> list[list[float]] | None:
    """One pass over left-padded prompts, then one over the openings; ``None`` without a plain cache."""
    mask = inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    last_alone = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}
    read = model(**inputs, position_ids=places, use_cache=True, **last_alone)
    kept_in = "cache" if "cache" in _arguments(model) else "past_key_values"  # its name before transformers 5.2x
    cache = getattr(read, kept_in, None)
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    go_on = partial(model, use_cache=True, **{kept_in: cache})
    last = read.logits[:, -1]
    if _takes_masks(model) and all(row == tokens[0] for row in tokens):
        added = last.dtype if _attention(model) == "eager" else None
        total = _along_a_tree(go_on, last, mask, OpeningTree(tokens[0]), added)
    else:
        cache.batch_repeat_interleave(len(tokens[0]))
        total = _in_rows(go_on, last, mask, tokens)
    values: list[list[float]] = total.tolist()
    return values


def _takes_masks(model: nn.Module) -> bool:
    """Whether the attention takes a mask of four dimensions as it is: every token may have a past of its own.

    Not where it goes by the place of a token in the cache too: ALiBi (Falcon), windows of its own (GPT-Neo).
    """
    config = _text_config(model)
    by_place = getattr(config, "alibi", False) or "local" in getattr(config, "attention_layers", ())
    return not by_place and _attention(model) in ("sdpa", "eager")


def _attention(model: nn.Module) -> str | None:
    return getattr(_text_config(model), "_attn_implementation", None)


def _text_config(model: nn.Module) -> Any:
    reads: Any = model.language_model if isinstance(model, TimmMLLM) else model
    config: Any = getattr(reads, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _along_a_tree(
    go_on: Callable[..., Any], last: Tensor, mask: Tensor, tree: OpeningTree, added: torch.dtype | None
) -> Tensor:
    """The sums of all openings behind every prompt, ``(prompts, openings)``, from one pass over the tree's tokens.

    Args:
        go_on: continues from the prompts' cache.
        last: logits behind the prompts, ``(prompts, vocabulary)``.
        mask: of the prompts' tokens, ``(prompts, tokens)``, left-padded.
        tree: of the openings.
        added: of a mask that is added to the attention's scores; ``None`` where it may be of truth values.
    """
    logits = last[:, None]
    if tree.tokens:
        count, device = len(mask), mask.device
        past = mask.bool()[:, None, None].expand(-1, -1, len(tree.tokens), -1)
        seen = tree.seen().to(device).expand(count, 1, -1, -1)
        attended = torch.cat([past, seen], dim=-1)
        if added is not None:
            hidden = torch.zeros(attended.shape, dtype=added, device=device)
            attended = hidden.masked_fill(~attended, torch.finfo(added).min)
        said = go_on(
            input_ids=torch.tensor(tree.tokens, device=device).expand(count, -1),
            attention_mask=attended,
            position_ids=mask.sum(1, keepdim=True) + torch.tensor(tree.depths, device=device),
        )
        logits = torch.cat([logits, said.logits], dim=1)
    return tree.sums(logits)


def _in_rows(go_on: Callable[..., Any], last: Tensor, mask: Tensor, tokens: Sequence[Sequence[list[int]]]) -> Tensor:
    """The same as :func:`_along_a_tree`, from one pass with a row, and a copy of the prompt's cache, for each opening.

    Args:
        go_on: continues from the caches of as many rows as there are openings of all prompts.
        last, mask: as there.
        tokens: of every prompt, the openings' tokens.
    """
    count, device = len(tokens[0]), mask.device
    rows = list(chain.from_iterable(tokens))
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in rows], device=device)
    ahead = torch.arange(width, device=device)
    kept = ahead < lengths[:, None]
    spread = mask.repeat_interleave(count, dim=0)
    said = go_on(
        input_ids=ids,
        attention_mask=torch.cat([spread, kept.to(mask.dtype)], dim=1),
        position_ids=spread.sum(1, keepdim=True) + ahead,
    )
    later, _ = answer_log_probabilities(said.logits, ids.masked_fill(~kept, IGNORED))  # of all tokens but the first
    first = last.to(torch.promote_types(last.dtype, torch.float32)).log_softmax(-1).repeat_interleave(count, dim=0)
    return (later + first.gather(1, ids[:, :1]).squeeze(1)).view(len(tokens), count)


def _read_whole(
    model: nn.Module,
    records: Sequence[Record],
    tokens: Sequence[Sequence[list[int]]],
    collator: OpeningCollator,
    batch_size: int,
    prepare: Callable[[Inputs], Inputs],
) -> list[list[float]]:
    """Passes over every prompt with every opening behind it."""
    count = len(tokens[0])
    asked = [record for record in records for _ in range(count)]
    rows, found = list(chain.from_iterable(tokens)), []
    for start in range(0, len(rows), batch_size):
        part = asked[start : start + batch_size]
        prompts = pad_on("right", collator.generate(part)["inputs"], part)
        batch = prepare(_followed(prompts, rows[start : start + batch_size]))
        with naming_failure(partial(_names, part)):
            found += answer_log_likelihoods(partial(model, use_cache=False), batch)[0].tolist()
    return [found[first : first + count] for first in range(0, len(found), count)]


def _followed(prompts: Inputs, rows: Sequence[list[int]]) -> Inputs:
    """Right-padded prompts, each with tokens behind it, and ``labels`` on those alone, ``(rows, tokens)`` int64.

    Other inputs with an entry for each token go on as the prompt's last token has it, as they do in ``generate``.
    """
    lengths = prompts["attention_mask"].sum(1).tolist()
    width = max(length + len(row) for length, row in zip(lengths, rows, strict=True))
    batch: Inputs = {}
    for key, value in prompts.items():
        if counts_tokens(prompts, key):
            last = value[torch.arange(len(rows)), torch.tensor(lengths) - 1]
            grown = last[:, None].expand(-1, width, *last.shape[1:]).clone()
            for place, length in enumerate(lengths):
                grown[place, :length] = value[place, :length]
            value = grown
        batch[key] = value
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    for place, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        end = length + len(row)
        batch["labels"][place, length:end] = batch["input_ids"][place, length:end] = torch.tensor(row)
        batch["attention_mask"][place, end:] = 0
    return batch


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.where for record in records))


def _check_apart(record: Record, openings: Sequence[str], tokens: Sequence[list[int]]) -> None:
    for (one, short), (other, long) in permutations(zip(openings, tokens, strict=True), 2):
        if long[: len(short)] == short:
            raise ValueError(
                f"{record.where}: the tokens of the opening {other!r} begin with those of {one!r}, so that its "
                "probability would count twice. Leave the longer one out."
            )
