"""Completion in a shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpa_lightning.cli import main


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _hpa_lightning; "
    shell = f'source {script}; {line} printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert not done.stderr
    return done.stdout.split()


def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--print_completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    assert complete(script, "hpa-lightning", "re") == ["report"]
    assert complete(script, "hpa-lightning", "report", "--out") == ["--output"]
    assert complete(script, "hpa-lightning", "fit", "--trainer.max_ep") == ["--trainer.max_epochs"]
    assert "--ckpt_path" in complete(script, "hpa-lightning", "test", "--ck")
    assert complete(script, "hpa-lightning", "fuse", "--saliency", "m") == ["multiply"]
    assert complete(script, "hpa-lightning", "study", "st") == ["status"]
    assert complete(script, "hpa-lightning", "data", "f") == ["filter"]
    assert complete(script, "hpa-lightning", "data", "filter", "--guard-c") == ["--guard-categories"]
    assert complete(script, "hpa-lightning", "data", "filter", "--rule", "v") == ["votes"]
    assert complete(script, "hpa-lightning", "rate", "import", "--inc") == ["--incomplete"]
    assert complete(script, "hpa-lightning", "report", "run") == [], "bash offers files then"
    main(["--print_completion", "fish"])
    fish = capsys.readouterr().out
    assert "-n '__fish_seen_subcommand_from report' -l output -r" in fish
    assert "-n '__fish_seen_subcommand_from data' -a 'check filter'" in fish
    main(["--print_completion", "zsh"])
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
