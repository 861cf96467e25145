"""Headers of safetensors files that lie or are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize(
    ("offsets", "behind", "message"),
    [
        ([(0, 8), (0, 8)], 0, "a and b share bytes"),
        ([(0, 8), (4, 12)], 0, "a and b share bytes"),
        ([(0, 8), (12, 20)], 0, "a and b have a gap"),
        ([(4, 12), (12, 20)], 0, "the header and a have a gap"),
        ([(0, 8), (8, 16)], 4, "4 bytes stand behind the last tensor"),
    ],
)
def test_tensors_stand_one_behind_the_other(
    offsets: list[tuple[int, int]], behind: int, message: str, tmp_path: Path
) -> None:
    """As the library has it, which would refuse what is made of such a file."""
    header: Any = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in zip("ab", offsets, strict=True)
    }
    header = json.dumps(header).encode()
    data = bytes(max(end for _, end in offsets) + behind)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with pytest.raises(ValueError, match=message):
        TensorFiles(tmp_path, [path.name])
    with pytest.raises(SafetensorError):
        load_file(path)


def test_a_tensor_that_a_header_names_twice_is_refused(tmp_path: Path) -> None:
    entry = '"weight": {"dtype": "F32", "shape": [2], "data_offsets": '
    entries = [f"{entry}{place}}}" for place in ([0, 8], [8, 16])]
    header = ("{" + ", ".join(entries) + "}").encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(
        ValueError, match=r"a.safetensors is not a safetensors file: an object has the key 'weight' twice"
    ):
        TensorFiles(tmp_path, ["a.safetensors"])
