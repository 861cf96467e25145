"""`hpa-lightning doctor` says what is installed, supported and needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.command_settings import write_configuration

from hpa_lightning.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_configuration(tmp_path)
    main(["doctor", "--config", str(path)])
    said = capsys.readouterr().out
    for part in (
        "torch  ",
        "cpu: ",
        "yes  architecture llava",
        "tuned linear layers",
        "optimizer, device, in training",
    ):
        assert part in said
    main(["doctor", "--model", str(tmp_path / "model"), "--rank", "4", "--dtype", "bfloat16"])
    assert "Memory on one device" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--config", str(path), "--strategy", "deepspeed_stage_3"])
    assert stopped.value.code == 1 and "no   SequentialTuning" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no strategy 'dpp'; did you mean 'ddp'\?"):
        main(["doctor", "--config", str(path), "--strategy", "dpp"])
    path.write_text(yaml.safe_dump({"model": {"init_args": {"config": {"model_type": "blip-2"}}}}))
    with pytest.raises(SystemExit, match="architecture 'blip-2' is not supported"):
        main(["doctor", "--config", str(path)])
