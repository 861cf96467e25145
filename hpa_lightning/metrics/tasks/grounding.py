"""Grounding accuracy: boxes written as text, correct above an IoU of 0.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from hpa_lightning.metrics.tasks.characters import plain_characters
from hpa_lightning.metrics.tasks.record_metric import MeanScore, References, mean_score

Box = tuple[Fraction, Fraction, Fraction, Fraction]
# Bounded, so that no text can ask for a number of a million digits.
_N = r"([-+]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,2})?)"
_COMMA = r"(?:\s*,\s*|\s+)"
_FOUR = rf"\s*{_N}{_COMMA}{_N}{_COMMA}{_N}{_COMMA}{_N}\s*"
_TWO = rf"[\[(]\s*{_N}{_COMMA}{_N}\s*[\])]"
_BOX = re.compile(rf"\[{_FOUR}\]|\({_FOUR}\)|{_TWO}\s*,?\s*{_TWO}", re.ASCII)
_BARE = re.compile(_FOUR, re.ASCII)


def read_boxes(text: str) -> list[Box]:
    """Reads the boxes of a text, exactly as written in decimals.

    A box is four numbers, separated by commas or spaces, in square or round brackets, or two pairs of numbers in
    brackets, or four numbers that are the whole text. Any other number of numbers in brackets is no box.

    Returns:
        Every box as `(x1, y1, x2, y2)`, degenerate ones included.

    Example:
        >>> [[float(x) for x in box] for box in read_boxes("The dog is at [0.1, 0.25, 0.5, 1] .")]
        [[0.1, 0.25, 0.5, 1.0]]
    """
    text = plain_characters(text)
    bare = _BARE.fullmatch(text)
    matches = [bare] if bare else _BOX.finditer(text)
    return [_box([group for group in match.groups() if group is not None]) for match in matches]


def _box(numbers: Sequence[str]) -> Box:
    x1, y1, x2, y2 = map(Fraction, numbers)
    return x1, y1, x2, y2


def _degenerate(box: Box) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def _area(box: Box) -> Fraction:
    return (box[2] - box[0]) * (box[3] - box[1])


def box_overlap(first: Box, second: Box) -> Fraction:
    """Intersection over union of two boxes that are not degenerate, an exact fraction in [0, 1]."""
    low, high = (
        (max(first[0], second[0]), max(first[1], second[1])),
        (min(first[2], second[2]), min(first[3], second[3])),
    )
    common = max(high[0] - low[0], Fraction(0)) * max(high[1] - low[1], Fraction(0))
    return common / (_area(first) + _area(second) - common)


def _grounded(prediction: str, accepted: Sequence[str]) -> float:
    expected = []
    for reference in accepted:
        boxes = read_boxes(reference)
        if len(boxes) != 1:
            raise ValueError(
                f"grounding accuracy needs exactly one box in each reference, such as '[0.1, 0.2, 0.5, 0.6]'; "
                f"{reference!r} has {len(boxes)}."
            )
        expected.append(boxes[0])
    boxes = read_boxes(prediction)
    if len(boxes) != 1 or _degenerate(boxes[0]):
        return 0.0
    if all((max(box) <= 1 and max(boxes[0]) > 2) or (max(box) > 2 and max(boxes[0]) <= 1) for box in expected):
        rank_zero_warn(
            "Grounding accuracy got boxes in different units: of a prediction and its reference one is within [0, 1] "
            "and the other above 2. Train on boxes in the units of the references; nothing is converted.",
            UserWarning,
        )
    return float(any(not _degenerate(box) and box_overlap(boxes[0], box) > Fraction(1, 2) for box in expected))


def grounding_accuracy(predictions: Sequence[str], references: References) -> Tensor:
    """Share of predicted boxes with an intersection over union above 0.5 with one of their references.

    Boxes are text, `[x1, y1, x2, y2]` with `x1 < x2` and `y1 < y2`, fractions of the image or pixels, in the same
    units in predictions and references (nothing is converted; a warning tells where they look different); see
    `read_boxes` for the forms that are read. A prediction is wrong unless it holds exactly one box, and if that box is
    degenerate (no width or no height, or its corners swapped). A degenerate reference is never met. Decision: an
    overlap of exactly 0.5 is wrong, as in the field's scorers (`IoU > 0.5`), in exact arithmetic on the decimals as
    written; areas are products of differences, without the added pixel of older detection code.

    Source: Mao et al., "Generation and Comprehension of Unambiguous Object Descriptions", 2016 (arXiv 1511.02283);
    Kazemzadeh et al., "ReferItGame", 2014.

    Args:
        predictions: one text per record.
        references: accepted boxes of each record, one box in each text.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, a record has no reference, or a reference not exactly one box.

    Example:
        >>> grounding_accuracy(["It is at [0, 0, 10, 6].", "[0, 0, 10, 5]", "there"], [("[0, 0, 10, 10]",)] * 3)
        tensor(0.3333)
    """
    return mean_score(predictions, references, _grounded, "The grounding accuracy")


class GroundingAccuracy(MeanScore):
    """Share of predicted boxes with an intersection over union above 0.5; see `grounding_accuracy`.

    Example:
        >>> metric = GroundingAccuracy()
        >>> metric.update(["[0.1, 0.1, 0.5, 0.5]", "none"], [("[0.1, 0.1, 0.5, 0.6]",), ("[0, 0, 1, 1]",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_grounded)
