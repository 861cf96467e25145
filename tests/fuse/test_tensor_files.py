"""Headers of safetensors files that lie or are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hpa_lightning.fuse.tensor_files import TensorFiles


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]},
        {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]},
        {"dtype": "F32"},
        "F32",
    ],
)
def test_headers_that_lie_are_refused(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"weight": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"a.safetensors: weight cannot be read"):
        TensorFiles(tmp_path, ["a.safetensors"])


@pytest.mark.parametrize("header", [b"{", b"[1]", b'"x"', b"\xff\xff", b"[" * 100_000])
def test_what_is_no_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"a.safetensors is not a safetensors file"):
        TensorFiles(tmp_path, ["a.safetensors"])
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 8 + header)
    with pytest.raises(ValueError, match=r"a.safetensors is cut short or not a safetensors file"):
        TensorFiles(tmp_path, ["a.safetensors"])


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"weight": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"weight is stored twice, in a.safetensors and in b.safetensors"):
        TensorFiles(tmp_path, ["a.safetensors", "b.safetensors"])
