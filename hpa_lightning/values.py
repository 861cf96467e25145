"""Values in messages: short, whatever they are; and the known name that one is nearest to."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 300


class _Short(reprlib.Repr):
    """``repr`` that looks at the first few items of the first few levels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = 200
        self.maxother = self.maxlong = 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 12

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:40]) + ("..." if len(value) > 40 else "")


_SHORT = _Short()


def shown(value: Any) -> str:
    """Return ``repr(value)`` in at most about 300 characters; one of 50 MB, or nested without end, costs no more.

    >>> shown("red"), len(shown(["x" * 1000] * 1000)) < 310
    ("'red'", True)
    """
    try:
        text = _SHORT.repr(value)
    except Exception:  # of an int with more digits than Python prints, or of a user-defined class
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def names(keys: Iterable[Any]) -> str:
    """Return the names as a list in words, at most 20 of them.

    >>> names({"b": 1, 1: 2})
    "['b', '1']"
    """
    texts = [str(key)[:60] for key in keys]
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    return f"{texts[:20]}{more}"


def first_of(given: Sequence[str], shown: int = 3) -> str:
    """Return the first of some names, and how many more there are.

    >>> first_of(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    return ", ".join(given[:shown]) + (f" and {len(given) - shown} more" if len(given) > shown else "")


def cut(text: object, limit: int = 1000) -> str:
    """Return the text, cut to its first ``limit`` characters: another library's message may hold the whole input."""
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'NAME'?"`` with the most similar known name, ``""`` if none is similar.

    >>> nearest("learning_rat", ["learning_rate", "steps"])
    "; did you mean 'learning_rate'?"
    >>> nearest("x", ["learning_rate"])
    ''
    """
    by_lower = {item.lower(): item for item in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""
