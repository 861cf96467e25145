"""What is exported of a stream that was killed, and what cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.command_settings import with_calibration
from support.exported_runs import EVALUATION, SEQUENTIAL, fitted, logits
from support.forked_programs import start_program
from transformers import AutoModelForImageTextToText

from hpa_lightning.cli import main
from hpa_lightning.exporting.source import TunedCheckpoint
from hpa_lightning.modules import MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_a_stream_that_was_killed(tmp_path: Path) -> None:
    """Killed in its second task: the first one's end is there, what came after it is not fused."""
    fusion: dict[str, Any] = {"class_path": "hpa_lightning.callbacks.HarmoniousFusion"}
    config = fitted(tmp_path, {"lora": {"rank": 2}}, [SEQUENTIAL, fusion, EVALUATION])
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"][1]["init_args"] = with_calibration(content, tmp_path)
    config.write_text(yaml.safe_dump(content))
    half = tmp_path / "run" / "checkpoints" / "step=4.ckpt"
    with (tmp_path / "said.txt").open("w") as said:
        process = start_program(
            [sys.executable, "-m", "hpa_lightning.cli", "fit", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and not half.is_file():
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert half.is_file(), (tmp_path / "said.txt").read_text()[-2000:]

    with pytest.raises(SystemExit, match=r"task 1 \('b'\): what HarmoniousFusion does.*--unfinished") as refused:
        main(["export", str(half), str(tmp_path / "out")])
    assert refused.value.code == 2 and not (tmp_path / "out").exists()
    main(["export", str(half), str(tmp_path / "out"), "--unfinished"])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    expected = MLLMModule.load_from_checkpoint(half)
    assert torch.allclose(logits(loaded, tmp_path / "out"), logits(expected.model, tmp_path / "model"), atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of 2 tasks are finished" in card and "These weights are not the method's result" in card
    assert "After: task 0 ('a')" in card and "tuned further after this was measured" in card


def test_a_checkpoint_of_a_compiled_model(tmp_path: Path) -> None:
    """`torch.compile` puts `_orig_mod.` into the names of the weights."""
    main(["fit", "--config", str(fitted(tmp_path, {"lora": {"rank": 2}}, [SEQUENTIAL]))])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    weights = content["state_dict"]
    content["state_dict"] = {name.replace("model.", "model._orig_mod.", 1): one for name, one in weights.items()}
    torch.save(content, path.with_name("compiled.ckpt"))
    source = TunedCheckpoint.read(path.with_name("compiled.ckpt"))
    assert source.content["state_dict"].keys() == weights.keys()
    assert all(torch.equal(one, weights[name]) for name, one in source.module().state_dict().items())


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "shards.ckpt").mkdir()
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.ckpt")
    for name, message in {
        "none.ckpt": "there is no checkpoint",
        "torn.ckpt": "is unusable",
        "shards.ckpt": "consolidate_checkpoint",
        "other.ckpt": "holds no `state_dict`",
    }.items():
        with pytest.raises(SystemExit, match=message):
            main(["export", str(tmp_path / name), str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
