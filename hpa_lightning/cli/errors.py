"""Mistakes of the user: one line, exit code 2, and the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hpa_lightning.values import cut


class UserError(SystemExit):
    """A mistake of the user: the process ends with code 2.

    Args:
        message: one line; `hpa-lightning COMMAND: ` is put before it where it is told.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 2

    def with_prefix(self, prefix: str) -> UserError:
        """The same error, named by the command."""
        message = str(self)
        return UserError(message if message.startswith(prefix) else f"{prefix}: {message}")


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


def on_one_line(text: str) -> str:
    """Return the text with its lines joined, in at most about 1000 characters.

    >>> on_one_line("no YAML:\\n  line 3")
    'no YAML: line 3'
    """
    return cut(" ".join(text.split()))
