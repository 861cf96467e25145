"""`hpa-lightning export`: transformers loads what the checkpoint computes, and the card is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.exported_runs import EVALUATION, SEQUENTIAL, fitted, logits
from transformers import AutoModelForImageTextToText

from hpa_lightning.cli import main
from hpa_lightning.modules import MLLMModule
from hpa_lightning.results.run_results import RunResults

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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
