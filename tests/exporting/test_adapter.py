"""An exported adapter is loaded by peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.exported_runs import SEQUENTIAL, fitted, logits
from transformers import AutoModelForImageTextToText

from hpa_lightning.cli import main
from hpa_lightning.exporting import TunedCheckpoint
from hpa_lightning.modules import MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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
