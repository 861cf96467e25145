"""Saved diagonals give the same output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.fused_checkpoints import CALIBRATION, LAYERS, SAFETY, SETTINGS, TASK, contents

from hpa_lightning.fuse import fuse_checkpoints, fusion_calibration


def test_saved_diagonals_give_the_same_output(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "diagonals.safetensors"
    fuse_checkpoints(*pair, tmp_path / "first", SAFETY, TASK, save_diagonals=file, **SETTINGS)
    with safe_open(file, "pt") as opened:
        everything = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    assert len(everything) == 2 * 7 * LAYERS
    save_file(
        {key: value for key, value in everything.items() if key.startswith("safety/")}, tmp_path / "half", metadata
    )

    with pytest.raises(
        ValueError, match=r"diagonals\.safetensors exists already; choose another file for the diagonals"
    ):
        fuse_checkpoints(*pair, tmp_path / "again", SAFETY, TASK, save_diagonals=file, **SETTINGS)

    loaded: list[Path] = []
    stream = fusion_calibration.StreamedModel
    monkeypatch.setattr(
        fusion_calibration,
        "StreamedModel",
        lambda source, device: loaded.append(source.folder) or stream(source, device),
    )
    fuse_checkpoints(*pair, tmp_path / "third", None, TASK, diagonals=tmp_path / "half", **SETTINGS)
    assert loaded == [pair[1]]
    fuse_checkpoints(*pair, tmp_path / "second", diagonals=file, **SETTINGS)
    assert loaded == [pair[1]]  # nothing was calibrated
    expected = contents(tmp_path / "first", "audit.json")
    assert contents(tmp_path / "second", "audit.json") == contents(tmp_path / "third", "audit.json") == expected

    for setting, value, message in (
        ("damping", 0.1, r"damping 0\.01"),
        ("normalized", False, "normalized True"),
        ("safety_positions", "answers", "safety_positions all"),
    ):
        changed = SETTINGS | {"calibration": replace(CALIBRATION, **{setting: value})}
        with pytest.raises(ValueError, match=f"made with {message}"):
            fuse_checkpoints(*pair, tmp_path / "out", diagonals=file, **changed)
    for value in (torch.nan, -1.0):
        bad = {key: tensor.clone() for key, tensor in everything.items()}
        next(iter(bad.values()))[0] = value
        save_file(bad, tmp_path / "bad", metadata)
        with pytest.raises(ValueError, match=r"diagonals of \[.*1 in all.* not positive and finite"):
            fuse_checkpoints(*pair, tmp_path / "out", diagonals=tmp_path / "bad", **SETTINGS)
    (tmp_path / "torn").write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"torn cannot be read .*--save-diagonals has written"):
        fuse_checkpoints(*pair, tmp_path / "out", diagonals=tmp_path / "torn", **SETTINGS)
    everything.pop(next(key for key in everything if "layers.1" in key))
    save_file(everything, file, metadata)
    with pytest.raises(ValueError, match="does not fit these models"):
        fuse_checkpoints(*pair, tmp_path / "out", diagonals=file, **SETTINGS)
