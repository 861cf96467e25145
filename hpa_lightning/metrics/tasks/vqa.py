"""Soft VQA accuracy over the answers of several people, and its answer normalisation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from hpa_lightning.metrics.tasks.record_metric import MeanScore, References, mean_score

_FEWEST_ANSWERS = 4  # the others than one's own must be able to be the three that agree
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`,?!]""")
# Left out is what would be another word without its apostrophe: he'll, i'd, it's, she'd, she'll, we'd, we'll, we're.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _without_some_apostrophes(word: str) -> Iterator[str]:
    """All ways to leave apostrophes of a contraction out, but not the contraction itself."""
    head, *parts = word.split("'")
    spellings = [head]
    for part in parts:
        spellings = [spelling + mark + part for spelling in spellings for mark in ("", "'")]
    return (spelling for spelling in spellings if spelling != word)


_APOSTROPHES = {spelling: word for word in _CONTRACTIONS.split() for spelling in _without_some_apostrophes(word)}


def normalise_vqa_answer(text: str) -> str:
    """Normalises an answer as the VQA evaluation describes it.

    Lower case; commas between digits and periods that are no decimal point removed; the marks
    ``; / [ ] " { } ( ) = + \\ _ - < > @ ` , ? !`` turned into spaces (apostrophes and colons stay); the number words
    none and zero to ten turned into digits; articles removed; apostrophes that contractions miss added. Decision: an
    answer that is nothing but articles keeps them, so that the letter "a" can be an answer.

    Source: https://visualqa.org/evaluation

    Example:
        >>> normalise_vqa_answer("The two men don't have 1,000 t-shirts.")
        "2 men don't have 1000 t shirts"
    """
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = _PUNCTUATION.sub(" ", text)
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_APOSTROPHES.get(w, w) for w in ([w for w in words if w not in _ARTICLES] or words))


def _vqa(prediction: str, answers: Sequence[str]) -> float:
    if len(answers) < _FEWEST_ANSWERS:
        raise ValueError(
            f"soft VQA accuracy compares with the answers of several people (ten in VQA, VizWiz and TextVQA), equal "
            f"ones repeated, and needs at least {_FEWEST_ANSWERS}; got {tuple(answers)!r}. For single answers take "
            "exact_match."
        )
    normalised = normalise_vqa_answer(prediction)
    if not normalised:
        return 0.0
    matching = sum(normalise_vqa_answer(answer) == normalised for answer in answers)
    agreeing = matching * min((matching - 1) / 3, 1.0)  # left out: one of those who gave this answer
    differing = (len(answers) - matching) * min(matching / 3, 1.0)
    return (agreeing + differing) / len(answers)


def vqa_accuracy(predictions: Sequence[str], references: References) -> Tensor:
    """Soft VQA accuracy: the share of people who agree, full from three on, `min(matches / 3, 1)`.

    As in the official evaluation, each answer is left out in turn, the prediction is compared with the others, and
    the mean is taken: of ten answers, 1, 2, 3 and 4 equal ones give 0.3, 0.6, 0.9 and 1. Predictions and answers are
    normalised by `normalise_vqa_answer`. Decisions:

    - Answers are always normalised, as the evaluation's description says and the TextVQA evaluation does. The
      official script does so only where the people disagree: there, "two" is wrong if all ten wrote "2".
    - Punctuation always turns into spaces. The official script deletes a mark without a space if it stands beside
      a space somewhere in the answer, or if a number has a thousands separator.
    - A prediction of nothing but punctuation is wrong.

    Source: Antol et al., "VQA: Visual Question Answering", 2015 (arXiv 1505.00468); https://visualqa.org/evaluation

    Args:
        predictions: one text per record.
        references: the answers of all people asked (ten in VQA, VizWiz and TextVQA), equal ones repeated.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has fewer than four answers, with which no prediction
            could be fully correct.

    Example:
        >>> vqa_accuracy(["Two dogs."], [("2 dogs", "two dogs", "dogs", "3", "3", "3", "cats", "cat", "2", "no")])
        tensor(0.6000)
    """
    return mean_score(predictions, references, _vqa, "The VQA accuracy")


class VQAAccuracy(MeanScore):
    """Soft VQA accuracy over the answers of several people; see `vqa_accuracy`.

    Example:
        >>> metric = VQAAccuracy()
        >>> metric.update(["yes", ""], [("yes",) * 10, ("no",) * 10])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_vqa)
