"""`hpa-lightning fit`, `validate`, `test` and `predict`: Lightning's commands.

Their options are those of Lightning's Trainer, which exist only once PyTorch is imported: that alone takes longer than
the help of the other commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def parser(command: str) -> Any:
    """The parser of one of Lightning's commands."""
    from hpa_lightning.lightning_commands import command_parsers

    return command_parsers()[command]


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands."""
    from hpa_lightning.lightning_commands import tuning_cli

    given = [command, *arguments]
    cli = tuning_cli(None if given == sys.argv[1:] else given)
    if command == "fit":
        from hpa_lightning.callbacks.fit_end import unfinished

        if reason := unfinished(cli.trainer):
            raise SystemExit(f"hpa-lightning fit: {reason}")
