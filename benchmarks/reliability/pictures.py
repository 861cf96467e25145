"""Pictures that were cut off: is one read without an error, and wrong?

    python benchmarks/reliability/pictures.py

A noisy picture is written in every format that Pillow writes and a data file may hold, each file is cut off at about a
hundred places, and what is left is read. Ends with 1 if a cut file gives another picture in place of an error.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from machine import command, commit  # noqa: E402
from PIL import Image  # noqa: E402

from hpa_lightning.data.images import read_rgb  # noqa: E402

FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("PNG", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG2000", {}),
    ("PPM", {}),
    ("TGA", {}),
    ("AVIF", {}),
    ("ICO", {}),
    ("PCX", {}),
    ("QOI", {}),
    ("SGI", {}),
    ("DDS", {}),
)


def main() -> int:
    """Cut every file and print how many are wrong without an error."""
    warnings.simplefilter("ignore")
    noise = np.random.default_rng(0).random((120, 160, 3))
    picture = Image.fromarray((noise * 255).astype(np.uint8))
    formats = cuts = wrong = 0
    for name, options in FORMATS:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, name, **options)
        except (KeyError, OSError) as error:  # not in every build of Pillow
            print(f"{name} cannot be written: {error}")
            continue
        whole = buffer.getvalue()
        expected = np.asarray(read_rgb(io.BytesIO(whole)))
        formats += 1
        ends = {*range(len(whole) - 300, len(whole), 7), *range(20, len(whole), len(whole) // 60)}
        for end in sorted(ends):
            cuts += 1
            try:
                found = np.asarray(read_rgb(io.BytesIO(whole[:end])))
            except ValueError:
                continue
            if not np.array_equal(found, expected):
                wrong += 1
                print(f"{name} {options}, cut at byte {end} of {len(whole)}: wrong without an error")
    print(f"{cuts} cut files of {formats} formats: {wrong} wrong without an error.")
    print(f"{command()}, commit {commit()}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
