"""One form of the characters that are typed in several ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from torchmetrics.utilities import rank_zero_warn

from hpa_lightning.metrics.judges.phrase_lists import UNSPACED

# "10²" would become "102", and "101₂" "1012".
_EXPONENT = re.compile("(?<=\\d)(?=[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b])")
_BASE = re.compile("(?<=\\d)(?=[\u2080-\u2089])")
_TYPED = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)

_NO_WORD = re.compile(f"{UNSPACED.pattern}{{10,}}")  # longer than nearly all words of these languages


def warn_of_unspaced(references: Iterable[str], name: str) -> None:
    """Warn where references are in a script without spaces: a scorer of words takes a whole sentence for one word.

    Args:
        references: of a set.
        name: what scores them.
    """
    if any(_NO_WORD.search(text) for text in references):
        rank_zero_warn(
            f"{name} counts words between spaces, and references are in a script without spaces (Chinese, Japanese, "
            "Thai, ...), where a whole sentence is one word: nearly every answer is wrong. Part the words of "
            "references and training answers by spaces, or take another metric.",
            UserWarning,
        )


def plain_characters(text: str) -> str:
    """Full width becomes half width (NFKC), a quotation mark or apostrophe the straight one, a dash or minus `-`.

    A raised number behind a digit is an exponent, a lowered one a base.

    Example:
        >>> [plain_characters(text) for text in ("don\u2019t", "\u22125", "\uff11\uff12", "10\u00b2")]
        ["don't", '-5', '12', '10^2']
    """
    return unicodedata.normalize("NFKC", _BASE.sub("_", _EXPONENT.sub("^", text))).translate(_TYPED)
