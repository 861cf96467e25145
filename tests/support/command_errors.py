"""What a command says before it ends."""

from __future__ import annotations

import pytest

from hpa_lightning.cli import main
from hpa_lightning.cli.app import LIGHTNING


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a mistake is answered with, after checking its form."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if arguments[0] not in LIGHTNING or line.startswith("hpa-lightning")]
    assert stopped.value.code == 2 and lines == [str(stopped.value)] and lines[0].startswith("hpa-lightning")
    return lines[0]
