"""Accuracy over options named by letters (ScienceQA and other multiple-choice sets)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from hpa_lightning.metrics.tasks.characters import plain_characters
from hpa_lightning.metrics.tasks.option_letters import (
    ALONE,
    AT_THE_START,
    LEAD_IN,
    final_answer,
    letter_of,
    named_options,
    split_letter,
    without_latex,
)
from hpa_lightning.metrics.tasks.record_metric import MeanScore, References, mean_score
from hpa_lightning.metrics.tasks.text import normalise_answer

_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3}|`{1,3})(.+)\1[.!]?", re.DOTALL)


def _without_lead_in(text: str) -> str:
    return LEAD_IN.sub("", text.strip(), count=1) if LEAD_IN.match(text.strip()) else text.strip()


def _without_letter(text: str) -> str:
    match = AT_THE_START.match(text)
    return text[match.end() :] if match else text


def _forms(*texts: str) -> set[str]:
    """The texts as they are compared: also without LaTeX, and without emphasis around the whole."""
    found: set[str] = set()
    for text in texts:
        match = _EMPHASIS.fullmatch(text.strip())
        for one in (text, text if match is None else match[2]):
            found |= {normalise_answer(one), normalise_answer(without_latex(one))}
    return found - {""}


def _bare(text: str) -> str:
    return normalise_answer(re.sub(r"^[\W_]+", "", text))


def _option(prediction: str, accepted: Sequence[str]) -> float:
    final = final_answer(prediction)
    stripped = [plain_characters(reference).strip() for reference in accepted]
    alone = [match for match in map(ALONE.fullmatch, stripped) if match]
    texts = [reference for reference in stripped if not ALONE.fullmatch(reference)]
    letters = {letter_of(match.groups()) for match in alone or map(AT_THE_START.match, texts) if match}

    plain = plain_characters(final)
    answer = _without_lead_in(plain)
    if _forms(plain, answer) & _forms(*texts):
        return 1.0
    letter, rest = split_letter(answer) or ("", "")
    if letter in letters and normalise_answer(rest) in {_bare(_without_letter(text)) for text in texts} - {""}:
        return 1.0
    named = named_options(prediction)
    if named and letters:
        return float(len(named) == 1 and named <= letters)
    return float(bool(_forms(_without_letter(answer)) & _forms(*map(_without_letter, texts))))


def option_references(right: str, text: str, letters: Sequence[str]) -> tuple[str, ...]:
    """The references of a question: the letter of the right option and its text.

    Without the text where that would make another option's letter right, as "b" or "(B)" of the option A would.

    Example:
        >>> option_references("A", "a cat", "ABC"), option_references("A", "(b)", "ABC")
        (('A', 'a cat'), ('A',))
    """
    both = (right, text)
    return both[:1] if any(_option(letter, both) for letter in letters if letter != right) else both


def names_no_option(prediction: str, accepted: Sequence[str]) -> bool:
    """Whether a prediction names no option by its letter, and is not the text of the right one.

    Example:
        >>> names_no_option("I don't know.", ("B",)), names_no_option("(C)", ("B",))
        (True, False)
    """
    return not named_options(prediction) and not _option(prediction, accepted)


def option_accuracy(predictions: Sequence[str], references: References) -> Tensor:
    """Share of multiple-choice questions whose right option, and no other, the prediction names.

    The references of a record are the letter of the right option ("B", "(B)"), its text, or both, as two references
    or as one ("B. a banana"). The other options are not known, so their texts name nothing. The rule, in this order:

    1. A prediction equal to a text reference is correct, up to case, spaces, trailing punctuation, LaTeX and emphasis
       of the whole, and with or without "The (correct) answer is" or "Answer:" before it. So is the right letter with
       the right text right behind it, whatever stands between them, if anything ("B banana", "B.banana").
    2. Otherwise it names the letters that stand (a) alone on a line, in brackets or not, or at the start of a line as
       `(B)`, `B)`, `B:`, `B.`, `B -` and then text, or as `B because` (`B.` without a space only before Chinese, a
       number, or a word such as "a", "the", "no": "E.coli" and "J.Smith" name nothing); (b) after "answer", "option",
       "choice", "guess", "Ans" and a colon, a dash or is, are, would be, should be, must be; after choose, select,
       pick, go with; after "It is" at the end of a line; before "is the correct answer", "is right" and the like at
       the start of a clause. In (a), later letters of the same line in these forms count if they continue a list: the
       next letter of the alphabet, or after and, or, a comma, a semicolon, a slash. Options told again from A on do
       not count where (b) names one. Where neither names any, (c) letters in brackets anywhere and letters right
       after "option", "choice" or "answer" count. After each of these a list continues ("B or C", "(A), (B)"). Small
       letters count in (a), in brackets, and in (b) at the end of a line or sentence, so that an article is no
       option. Letters that a text denies count nowhere: "not (A)", "neither A nor B", "(A) is wrong".
    3. Where it names letters and the right one is known, it is correct if it names that one and no other.
    4. Otherwise the rest of the prediction, without "The answer is" and "B.", must equal a text reference.

    First of all only the final answer is taken: what follows ``</think>``; the content of the last ``\\boxed{}``,
    ``<answer>``, ``<|begin_of_box|>`` or last line after ``####`` if there is one; and of LaTeX the plain text. Where a
    box names no option, what stands around boxes counts: (b), and a letter alone on a line. Full-width letters, the
    Chinese forms of (b), and "the answer is" and "answer:" in some other languages are read as well. So a prediction
    that names no option, or several, is wrong, and what is not written in one of these forms names no option ("I think
    B"). An empty prediction is wrong, and so are thoughts that never end.

    Source: Lu et al., "Learn to Explain" (ScienceQA), 2022 (arXiv 2209.09513). Accuracy is the field's, the rule is
    this package's: LLaVA's scorer reads a letter alone, "B. " at the start, and exactly one "The answer is B.";
    MMMU's parser and VLMEvalKit take brackets and lone capitals as well, and guess where there are several.

    Args:
        predictions: one text per record.
        references: letter and/or text of the right option of each record.

    Returns:
        A scalar tensor in [0, 1]; NaN with a warning if there are no predictions.

    Raises:
        ValueError: if the two differ in length, or a record has no reference.

    Example:
        >>> option_accuracy(["The answer is B.", "B or C", "a banana", ""], [("B", "a banana")] * 4)
        tensor(0.5000)
    """
    return mean_score(predictions, references, _option, "The option accuracy")


class OptionAccuracy(MeanScore):
    """Share of multiple-choice questions whose right option the prediction names; see `option_accuracy`.

    Example:
        >>> metric = OptionAccuracy()
        >>> metric.update(["(B)", "A"], [("B",), ("B",)])
        >>> metric.compute()
        tensor(0.5000)
    """

    score = staticmethod(_option)
