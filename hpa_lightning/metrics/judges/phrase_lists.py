"""Lists of phrases that are looked for in a text, and the JSON files that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import names

MATCHES = ("anywhere", "prefix", "words")


@dataclass(frozen=True)
class Phrases:
    """Phrases in lower case, and how they match a text, which is compared in lower case.

    Args:
        match: ``"anywhere"`` in the text, at its start (``"prefix"``), or anywhere as whole words (``"words"``: "ass"
            is not found in "class"; Chinese, Japanese, Thai and their like, without spaces, are found anywhere).
        phrases: one with a capital can never match.
        exact: texts that match as a whole.

    >>> Phrases("words", ("pipe bomb", "ass")).found("The class built a pipe  bomb.")
    'pipe bomb'
    """

    match: str
    phrases: tuple[str, ...]
    exact: tuple[str, ...] = ()

    def found(self, text: str) -> str | None:
        """Return the first phrase of the list that matches; ``None`` if none does."""
        lowered = text.lower() if self.match == "anywhere" else text.lower().strip()
        if lowered in self.exact:
            return lowered
        if self.match == "anywhere":
            return next((phrase for phrase in self.phrases if phrase in lowered), None)
        if self.match == "prefix":
            return next((phrase for phrase in self.phrases if lowered.startswith(phrase)), None)
        hit = self._words.search(lowered) if self.phrases else None
        return None if hit is None else " ".join(hit[0].split())

    @cached_property
    def _words(self) -> re.Pattern[str]:
        longest_first = sorted(self.phrases, key=len, reverse=True)
        return re.compile("|".join(map(_as_words, longest_first)))


UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese, whose words have no spaces between them."""


def _as_words(phrase: str) -> str:
    """The pattern of a phrase; its ends are those of words where its script has spaces between words."""
    said = phrase.strip()
    begins = "" if UNSPACED.match(said[:1]) else r"(?<!\w)"
    ends = "" if UNSPACED.match(said[-1:]) else r"(?!\w)"
    return begins + r"\s+".join(map(re.escape, said.split())) + ends


def read_phrases(path: Path, what: str = "refusal rules") -> Phrases:
    """Read ``{"match": "anywhere" | "prefix" | "words", "phrases": [...], "exact": [...]}``.

    Args:
        path: the file; a key ``source`` is not read.
        what: the rules' name in messages.

    Raises:
        ValueError: named by the file: broken JSON, another form, no phrase.
    """
    try:
        rules: Any = parse_json(read_text(path), path.name)
    except ValueError as error:
        raise ValueError(f"The {what} in {path} are not valid JSON: {error}") from error
    ways = " | ".join(f'"{way}"' for way in MATCHES)
    expected = f'expected {{"match": {ways}, "phrases": ["..."]}} and optionally "exact": ["..."]'
    if not isinstance(rules, dict) or rules.get("match") not in MATCHES:
        raise ValueError(f"The {what} in {path} name no way to match; {expected}.")
    unknown = sorted(set(rules) - {"match", "phrases", "exact", "source"})
    if unknown:
        raise ValueError(f"The {what} in {path} have the unknown keys {names(unknown)}; {expected}.")
    lists = {key: rules.get(key, []) for key in ("phrases", "exact")}
    for key, phrases in lists.items():
        if not isinstance(phrases, list) or not all(isinstance(p, str) and p.strip() for p in phrases):
            raise ValueError(f"{key!r} of the {what} in {path} must be non-empty strings; {expected}.")
    if not any(lists.values()):
        raise ValueError(f"The {what} in {path} hold no phrase; {expected}.")
    # Texts are compared in lower case, where a phrase with a capital could never match.
    return Phrases(rules["match"], *(tuple(phrase.lower() for phrase in lists[key]) for key in ("phrases", "exact")))
