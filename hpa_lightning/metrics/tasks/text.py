"""Exact match, containment and token F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from hpa_lightning.metrics.tasks.characters import plain_characters, warn_of_unspaced
from hpa_lightning.metrics.tasks.record_metric import MeanScore, References, best_of, mean_score

# Beside the marks of English the Chinese and Japanese stop and comma, the Arabic question mark, comma, semicolon and
# stop, and the Indic dandas; full-width marks become those of English before.
_OTHER_ENDS = "\u3002\u3001\u061f\u060c\u061b\u06d4\u0964\u0965"
SENTENCE_END = f".,;:!? {_OTHER_ENDS}"
_TOKEN_EDGE = f".,;:!?\"'()[]{{}}\u00ab\u00bb\u00bf\u00a1{_OTHER_ENDS}"


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no trailing punctuation of any script, `plain_characters`.

    Example:
        >>> normalise_answer("  A  Red cube ."), normalise_answer("\u7ea2\u8272\u3002"), normalise_answer("10\u00b2 m")
        ('a red cube', '\u7ea2\u8272', '10^2 m')
    """
    return " ".join(plain_characters(text).casefold().split()).rstrip(SENTENCE_END)


def _tokens(text: str) -> list[str]:
    stripped = (token.strip(_TOKEN_EDGE) for token in normalise_answer(text).split())
    return [token for token in stripped if token]


def same_answer(prediction: str, reference: str) -> bool:
    """Whether the two are equal after `normalise_answer`, and not empty."""
    answer = normalise_answer(prediction)
    return bool(answer) and answer == normalise_answer(reference)


def _matches(prediction: str, reference: str) -> float:
    return float(same_answer(prediction, reference))


def _contains(prediction: str, reference: str) -> float:
    return float(bool(reference.strip()) and reference.strip().casefold() in prediction.casefold())


def _f1(prediction: str, reference: str) -> float:
    warn_of_unspaced([reference], "The token F1")
    predicted, expected = Counter(_tokens(prediction)), Counter(_tokens(reference))
    common = (predicted & expected).total()
    return 2 * common / (predicted.total() + expected.total()) if common else 0.0


_best_match, _best_contained, _best_f1 = best_of(_matches), best_of(_contains), best_of(_f1)


def exact_match(predictions: Sequence[str], references: References) -> Tensor:
    """Share of predictions equal to one of their references, up to case, spaces and trailing punctuation.

    Typographic apostrophes, quotation marks and dashes are the plain ones, full width is half width. Decision: an empty
    prediction is never correct, and no substring counts (scorers that accept substrings in either direction score an
    empty prediction as correct).

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> exact_match(["Red .", "", "a blue cube"], [("red",), ("green",), ("blue",)])
        tensor(0.3333)
    """
    return mean_score(predictions, references, _best_match, "The exact match")


def contained_match(predictions: Sequence[str], references: References) -> Tensor:
    """Share of predictions that contain one of their references, letter for letter up to case.

    The accuracy of MLLM-DCL's remote sensing, medical and driving tasks (Zhao et al., arXiv 2506.05453), for numbers
    that compare with theirs. It is generous: a part of a word counts ("no" in "north"), and so does an answer that
    lists every possibility. An empty prediction contains nothing, and an empty reference is contained in nothing.

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> contained_match(["It is Urban.", "", "rural"], [("urban",), ("no",), ("rural area",)])
        tensor(0.3333)
    """
    return mean_score(predictions, references, _best_contained, "The containment")


def token_f1(predictions: Sequence[str], references: References) -> Tensor:
    """Mean F1 of the words shared with the best of the references (with repetition), as SQuAD scores answers.

    Words are separated by spaces, in lower case, without punctuation at their edges. Decision: articles
    count.

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> token_f1(["a dog , running"], [("a dog", "cat")])
        tensor(0.8000)
    """
    return mean_score(predictions, references, _best_f1, "The token F1")


class ExactMatch(MeanScore):
    """Share of predictions equal to one of their references; see `exact_match`.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(["Red .", ""], [("red",), ("green",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_best_match)


class ContainedMatch(MeanScore):
    """Share of predictions that contain one of their references; see `contained_match`.

    Example:
        >>> metric = ContainedMatch()
        >>> metric.update(["a red cube", "green"], [("red",), ("greenish",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_best_contained)


class TokenF1(MeanScore):
    """Mean F1 of the words shared with the best of the references; see `token_f1`.

    Example:
        >>> metric = TokenF1()
        >>> metric.update(["a dog"], [("a black dog",)])
        >>> metric.compute()
        tensor(0.8000)
    """

    score = staticmethod(_best_f1)
