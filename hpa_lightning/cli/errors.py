"""Mistakes of the user: one line, exit code 2, and the nearest name."""

from __future__ import annotations

from hpa_lightning.values import cut


class UserError(SystemExit):
    """A mistake of the user: the process ends with code 2.

    Args:
        message: one line; `hpa-lightning COMMAND: ` is put before it where it is reported.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 2

    def with_prefix(self, prefix: str) -> UserError:
        """The same error, named by the command."""
        message = str(self)
        return UserError(message if message.startswith(prefix) else f"{prefix}: {message}")


def on_one_line(text: str) -> str:
    """Return the text with its lines joined, in at most about 1000 characters.

    >>> on_one_line("no YAML:\\n  line 3")
    'no YAML: line 3'
    """
    return cut(" ".join(text.split()))
