"""`hpa-lightning export`: transformers and peft load what the checkpoint computes, and the card is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from support.command_settings import with_calibration, write_configuration
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from hpa_lightning.cli import main
from hpa_lightning.exporting import TunedCheckpoint
from hpa_lightning.modules import MLLMModule
from hpa_lightning.results.run_results import RunResults

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def fitted(folder: Path, model: dict[str, Any], callbacks: list[Any], **trainer: Any) -> Path:
    """A run of two tasks of three steps; its checkpoints lie in `run/checkpoints`."""
    path = write_configuration(folder)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] = {"model": str(folder / "model"), "generation": {"max_new_tokens": 3}, **model}
    keep = {"dirpath": str(folder / "run" / "checkpoints"), "every_n_train_steps": 1, "save_top_k": -1}
    keep |= {"filename": "{step}", "save_last": True, "save_on_train_epoch_end": True}
    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}
    config["trainer"] = {**config["trainer"], **trainer, "callbacks": [*callbacks, saver]}
    path.write_text(yaml.safe_dump(config))
    return path


SEQUENTIAL = {"class_path": "hpa_lightning.callbacks.SequentialTuning"}
EVALUATION = {"class_path": "hpa_lightning.callbacks.TaskEvaluation", "init_args": {"report": False}}


def inputs(folder: Path) -> dict[str, Tensor]:
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor.tokenizer(["what is in the picture", "red"], return_tensors="pt", padding=True)
    return {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}


def logits(model: Any, folder: Path) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(folder)).logits


@pytest.mark.parametrize("model", [{"lora": {"rank": 2}}, {}], ids=["lora", "full"])
def test_transformers_loads_what_the_run_has_tuned(
    model: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(fitted(tmp_path, model, [SEQUENTIAL, EVALUATION]))])
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(["export", str(checkpoint), str(tmp_path / "out")])
    assert "its card in README.md" in capsys.readouterr().out
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    expected = MLLMModule.load_from_checkpoint(checkpoint)
    assert torch.allclose(logits(loaded, tmp_path / "out"), logits(expected.model, tmp_path / "model"), atol=1e-5)
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert not torch.allclose(logits(loaded, tmp_path / "out"), logits(base, tmp_path / "model"), atol=1e-5)

    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "image-text-to-text"
    run = RunResults.from_file(tmp_path / "run")
    row = next(line for line in card.splitlines() if line.startswith("| harm |")).split("|")
    before, after = (100 * run.safety(step)["harm"] for step in (-1, 1))
    assert [cell.strip() for cell in row[4:8]] == [f"{before:.2f}", f"{after:.2f}", f"{after - before:.2f}", "2"]
    assert "2 of 2 tasks are finished" in card and "`a`, `b`" in card and "SequentialTuning" in card
    assert str(tmp_path) not in card, "places on this machine are nobody's business"

    with pytest.raises(SystemExit, match="exists already and is not an empty folder"):
        main(["export", str(checkpoint), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="export the whole model"):  # merged at the task's end, or never an adapter
        main(["export", str(checkpoint), str(tmp_path / "adapter"), "--adapter"])
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("stabilized", [False, True])
def test_peft_loads_the_adapter(tmp_path: Path, stabilized: bool) -> None:
    """Within the first task nothing is merged yet: the adapter is all that was learnt."""
    lora = {"rank": 2, "alpha": 6.0, "rank_stabilized": stabilized}
    fast = {"class_path": "torch.optim.SGD", "init_args": {"lr": 5.0}}
    main(["fit", "--config", str(fitted(tmp_path, {"lora": lora, "optimizer": fast}, [SEQUENTIAL]))])
    checkpoint = tmp_path / "run" / "checkpoints" / "step=2.ckpt"
    arguments = ["export", str(checkpoint), str(tmp_path / "adapter"), "--adapter"]
    if TunedCheckpoint.read(checkpoint).unfinished:
        with pytest.raises(SystemExit, match="has not been done"):
            main(arguments)
        arguments.append("--unfinished")
    main(arguments)
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    before = logits(base, tmp_path / "model")
    loaded = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")), tmp_path / "model")
    expected = logits(MLLMModule.load_from_checkpoint(checkpoint).model, tmp_path / "model")
    assert torch.allclose(loaded, expected, atol=1e-6) and not torch.allclose(loaded, before, atol=1e-6)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and "Nothing was measured in this run" in card


def test_a_stream_that_was_killed(tmp_path: Path) -> None:
    """Killed in its second task: the first one's end is there, what came after it is not fused."""
    fusion: dict[str, Any] = {"class_path": "hpa_lightning.callbacks.HarmoniousFusion"}
    config = fitted(tmp_path, {"lora": {"rank": 2}}, [SEQUENTIAL, fusion, EVALUATION])
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"][1]["init_args"] = with_calibration(content, tmp_path)
    config.write_text(yaml.safe_dump(content))
    process = subprocess.Popen(
        [sys.executable, "-m", "hpa_lightning.cli", "fit", "--config", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    half = tmp_path / "run" / "checkpoints" / "step=4.ckpt"
    while process.poll() is None and not half.is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert half.is_file(), said[-2000:]

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


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "shards.ckpt").mkdir()
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.ckpt")
    for name, message in {
        "none.ckpt": "there is no checkpoint",
        "torn.ckpt": "is of no use",
        "shards.ckpt": "consolidate_checkpoint",
        "other.ckpt": "holds no `state_dict`",
    }.items():
        with pytest.raises(SystemExit, match=message):
            main(["export", str(tmp_path / name), str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
