"""CIDEr-D, the consensus of captions with those of several people."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from hpa_lightning.metrics.judges.judged_text import given_answer
from hpa_lightning.metrics.tasks.caption_tokens import caption_tokens
from hpa_lightning.metrics.tasks.characters import warn_of_unspaced
from hpa_lightning.metrics.tasks.record_metric import References, check_records

_LONGEST = 4
_SIGMA = 6.0
Gram = tuple[str, ...]
Tokens = Sequence[str]


def _grams(tokens: Tokens) -> list[Counter[Gram]]:
    """The n-grams of a caption with their counts, for n = 1 to 4."""
    return [
        Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
        for n in range(1, _LONGEST + 1)
    ]


def _similarity(candidate: dict[Gram, float], reference: dict[Gram, float]) -> float:
    """Cosine of two vectors of weights, the candidate's clipped to the reference's; 0 if one has no length."""
    norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (candidate, reference)]
    if 0.0 in norms:
        return 0.0
    product = sum(
        min(weight, reference[gram]) * reference[gram] for gram, weight in candidate.items() if gram in reference
    )
    return product / (norms[0] * norms[1])


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of each tokenised caption; see `cider`.

    Args:
        candidates: the tokens of one caption per record.
        references: the tokens of every reference of each record.

    Returns:
        One score per record, each in [0, 10].

    Example:
        >>> scores = cider_d([["red", "cube"], ["two", "dogs"]], [[["red", "cube"]], [["a", "cat"]]])
        >>> [round(score, 4) for score in scores]
        [5.0, 0.0]
    """
    known = [[_grams(reference) for reference in accepted] for accepted in references]
    records_with: Counter[Gram] = Counter()
    for accepted in known:
        records_with.update({gram for reference in accepted for counts in reference for gram in counts})

    def weighted(counts: Counter[Gram]) -> dict[Gram, float]:
        return {gram: count * math.log(len(known) / max(1, records_with[gram])) for gram, count in counts.items()}

    scores = []
    for tokens, accepted, texts in zip(candidates, known, references, strict=True):
        candidate = [weighted(counts) for counts in _grams(tokens)]
        total = 0.0
        for reference, text in zip(accepted, texts, strict=True):
            penalty = math.exp(-((len(tokens) - len(text)) ** 2) / (2 * _SIGMA**2))
            total += penalty * sum(map(_similarity, candidate, map(weighted, reference))) / _LONGEST
        scores.append(10 * total / len(accepted))
    return scores


def _mean(records: Sequence[Sequence[str]], name: str) -> float:
    """The mean over records `[prediction, *references]`; NaN with a warning if there are none."""
    if not records:
        rank_zero_warn(f"{name} has seen no prediction, so its value is NaN.", UserWarning)
        return math.nan
    if len(records) == 1:
        rank_zero_warn(f"{name} has seen one record, where every word is in all records: it is 0.", UserWarning)
    warn_of_unspaced((text for record in records for text in record[1:]), name)
    tokens: dict[str, list[str]] = {}
    for record in records:
        tokens |= {text: caption_tokens(text) for text in record if text not in tokens}
    texts = [[tokens[text] for text in record] for record in records]
    return math.fsum(cider_d([text[0] for text in texts], [text[1:] for text in texts])) / len(records)


def cider(predictions: Sequence[str], references: References) -> Tensor:
    """CIDEr-D: how much captions share, in n-grams that are rare in the set, with those that people wrote.

    For n = 1 to 4, a caption is the vector of its n-gram counts, each times `log(N / df)`: `N` records, `df` of them
    with the n-gram in a reference. A caption `c` and a reference `s` give
    `exp(-(|c| - |s|)^2 / (2 * 6^2)) * min(c, s) . s / (|c| |s|)`, averaged over the references and over n, times 10.

    The document frequencies are those of the references of the whole set that is given, so that a score belongs to a
    set: a part of it scores differently, and a single record 0. The value is not bounded by 1: it is in [0, 10], and
    the field writes 100 times it, as reports here write all scores (1.18 is "118"). An empty caption scores 0.

    Decision: written here, since the public scorer comes with tokenisers that need Java. On equal tokens it equals
    the scorer of `pycocoevalcap`, whose counts are absolute where the paper's formula has relative ones. Tokens
    are those of `caption_tokens`, close to but not those of the Stanford tokeniser: compare CIDEr with published
    values with that in mind.

    Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", 2015 (arXiv 1411.5726).

    Args:
        predictions: one caption per record.
        references: the captions that people wrote for each record, at least one (five in COCO and Flickr30k).

    Returns:
        A scalar tensor in [0, 10]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> cider(["A red cube.", "Two dogs."], [("a red cube",), ("a cat",)])
        tensor(3.7500)
    """
    check_records(predictions, references)
    records = [
        [given_answer(prediction), *accepted] for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return torch.tensor(_mean(records, "CIDEr"))


class CIDEr(Metric):
    """CIDEr-D of captions over the whole set; see `cider`.

    The state holds all texts (as bytes, that processes can gather them), and all is computed at the end, with the
    document frequencies of the whole set. The value that `forward` returns for a batch is that of the batch alone.

    Example:
        >>> metric = CIDEr()
        >>> metric.update(["A red cube."], [("a red cube",)])
        >>> metric.update(["Two dogs."], [("a cat",)])
        >>> metric.compute()
        tensor(3.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float = 0.0
    lines: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # JSON lines in ASCII: processes gather tensors, not strings.
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[str], references: References) -> None:
        """Adds captions, each with its tuple of references."""
        check_records(predictions, references)
        records = zip(predictions, references, strict=True)
        text = "".join(json.dumps([given_answer(prediction), *accepted]) + "\n" for prediction, accepted in records)
        self.lines.append(self._bytes(text))  # type: ignore[union-attr]

    def compute(self) -> Tensor:
        """CIDEr-D of all captions, in [0, 10]; NaN with a warning if there were none."""
        lines = dim_zero_cat(self.lines) if len(self.lines) else self._bytes("")
        text = lines.to("cpu", torch.uint8).numpy().tobytes().decode("ascii")
        return torch.tensor(_mean([json.loads(line) for line in text.splitlines()], "CIDEr"), device=self.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)

    def _bytes(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(text.encode("ascii"), dtype=np.uint8).copy()).to(self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        if not len(self.lines):  # every process must gather a tensor of the same type, those without a record too
            self.lines = [self._bytes("")]
        super()._sync_dist(dist_sync_fn, process_group)
