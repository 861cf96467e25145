"""Which checkpoints are whole, and which is the newest."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from support.torn_checkpoints import save

from hpa_lightning.checkpoints import checkpoint_fault, newest_checkpoint


def test_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint([tmp_path, tmp_path / "none"]) == (None, [])
    for age, name in ((9, "old"), (5, "good"), (3, "cut"), (2, "damaged"), (1, "fusing")):
        save(tmp_path / f"{name}.ckpt", age, **({"Fusion": {"torn": "fusing"}} if name == "fusing" else {}))
    good = (tmp_path / "good.ckpt").read_bytes()
    at = good.index(torch.arange(1000).numpy().tobytes()[:64]) + 400
    for name, content in (("cut", good[:-200]), ("damaged", good[:at] + b"\xff" + good[at + 1 :])):
        stat = (tmp_path / f"{name}.ckpt").stat()
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        os.utime(tmp_path / f"{name}.ckpt", (stat.st_atime, stat.st_mtime))
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "lost.ckpt").symlink_to(tmp_path / "gone.ckpt")
    found, torn = newest_checkpoint([tmp_path])
    assert found == tmp_path / "good.ckpt"
    assert [Path(line.split(" is ")[0]).stem for line in torn] == ["empty", "fusing", "damaged", "cut"]
    assert "saved on an error while Fusion was fusing" in torn[1] and "damaged" in torn[2] and "cut off" in torn[3]
    for content, fault in (
        ([1, 2], "it holds a list"),
        ({"w": torch.ones(2)}, "it holds no `state_dict`"),
        ({"state_dict": {}}, "it holds no `pytorch-lightning_version`"),
        ({"state_dict": [1], "pytorch-lightning_version": "2.6.0"}, "its `state_dict` is a list"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "callbacks": 7}, "its `callbacks` is a int"),
    ):
        torch.save(content, tmp_path / "other.ckpt")
        assert f"no checkpoint of Lightning's ({fault})" in str(checkpoint_fault(tmp_path / "other.ckpt"))
        assert newest_checkpoint([tmp_path])[0] == tmp_path / "good.ckpt"
    sharded = tmp_path / "sharded.ckpt"
    sharded.mkdir()
    assert "it lacks .metadata and meta.pt" in str(checkpoint_fault(sharded))
