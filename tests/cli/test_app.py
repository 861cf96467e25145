"""Usage, version, and an unknown command."""

from __future__ import annotations

import pytest

from hpa_lightning.cli import main


def test_usage_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "hpa-lightning fit" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.strip() == "0.1.0"
    with pytest.raises(SystemExit, match="no command 'tune'"):
        main(["tune"])
