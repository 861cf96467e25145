"""Prompts of one list that say nearly what a prompt of another one says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLD = 0.5
"""Cosine from which two prompts count as near-duplicates."""


class NearDuplicate(NamedTuple):
    """A prompt and the one of the other list that it resembles most.

    Args:
        prompt: that is left out.
        like: of the list that is kept.
        cosine: of the two, at most 1.
    """

    prompt: str
    like: str
    cosine: float


def near_duplicates(
    prompts: Sequence[str], kept: Sequence[str], threshold: float = THRESHOLD
) -> dict[int, NearDuplicate]:
    """Return the places of prompts that resemble one of ``kept``.

    Two prompts are compared by the cosine of their TF-IDF vectors over runs of 3 to 5 characters within words (counts
    in logarithms): inflections and small insertions change it little, a shared frame such as "How do I" counts for
    little because it is in many prompts.

    >>> found = near_duplicates(["How to forge a passport?", "What is rain?"], ["How can I best forge a passport?"])
    >>> list(found), found[0].like
    ([0], 'How can I best forge a passport?')
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not prompts or not kept:
        return {}
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectors.fit([*prompts, *kept])
    cosines = (vectors.transform(prompts) @ vectors.transform(kept).T).toarray()
    likest = np.argmax(cosines, axis=1)
    best = cosines[np.arange(len(prompts)), likest]
    return {
        place: NearDuplicate(prompts[place], kept[int(likest[place])], float(best[place]))
        for place in range(len(prompts))
        if best[place] >= threshold
    }
