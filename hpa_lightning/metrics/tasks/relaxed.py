"""Relaxed match of ChartQA: numbers within 5 %, anything else exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from torch import Tensor

from hpa_lightning.metrics.tasks.characters import plain_characters
from hpa_lightning.metrics.tasks.record_metric import MeanScore, References, best_of, mean_score
from hpa_lightning.metrics.tasks.text import SENTENCE_END, same_answer

_TOLERANCE = Decimal("0.05")
# Exponents are short, so that no text can ask for a number of a million digits.
_NUMBER = re.compile(r"([-+]?)\s?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)((?:e[-+]?\d{1,3})?)\s?(%?)", re.ASCII)


def read_number(text: str) -> Decimal | None:
    """Reads a text that is one number, and nothing else.

    A sign, thousands separators (`1,234,567`), a decimal point, an exponent and a percent sign (`45 %` is 0.45) are
    read; currencies, units, words and lists are not.

    Returns:
        The number, or `None` if the text is none.

    Example:
        >>> read_number("-1,234.5"), read_number("45%"), read_number("45 km")
        (Decimal('-1234.5'), Decimal('0.45'), None)
    """
    match = _NUMBER.fullmatch(" ".join(plain_characters(text).lower().split()).rstrip(SENTENCE_END))
    if match is None:
        return None
    sign, digits, exponent, percent = match.groups()
    number = Decimal(sign + digits.replace(",", "") + exponent)
    return number / 100 if percent else number


def _relaxed(prediction: str, reference: str) -> float:
    expected = read_number(reference)
    number = None if expected is None else read_number(prediction)
    if expected is None or number is None:
        return float(same_answer(prediction, reference))
    return float(abs(number - expected) <= _TOLERANCE * abs(expected))


_best_relaxed = best_of(_relaxed)


def relaxed_match(predictions: Sequence[str], references: References) -> Tensor:
    """Relaxed accuracy of ChartQA: a number is correct within 5 % of the reference, a text if it is equal.

    The tolerance is relative to the reference and includes its ends: 95 to 105 for 100, computed in decimals, so
    that 1.05 is correct for 1. Texts are compared as `exact_match` does. Decisions:

    - `45%` is 0.45, as in the public scorers; `45` for `45%` is wrong.
    - Thousands separators are read (`1,234`), where the public scorers take `1,234` for a text.
    - A tolerance relative to a reference of zero is nothing: only a number equal to zero is correct.
    - Years are numbers too (2010 is correct for 2000): a known weakness of the field's definition, kept to be
      comparable. Score sets of years by `exact_match`.

    Source: Masry et al., "ChartQA", 2022 (arXiv 2203.10244, section 5.1), after Methani et al., "PlotQA", 2020.

    Args:
        predictions: one text per record.
        references: accepted answers of each record, at least one; the best counts.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> relaxed_match(["1,040", "0.5", "Blue.", ""], [("1000",), ("45%",), ("blue",), ("0",)])
        tensor(0.5000)
    """
    return mean_score(predictions, references, _best_relaxed, "The relaxed match")


class RelaxedMatch(MeanScore):
    """Relaxed accuracy of ChartQA; see `relaxed_match`.

    Example:
        >>> metric = RelaxedMatch()
        >>> metric.update(["104", "106"], [("100",), ("100",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_best_relaxed)
