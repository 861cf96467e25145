"""Instruction data of the nano world as a file of LLaVA's schema, with harmful samples among them, to try filters on.

    python -m hpa_lightning.data.nano.instruction_file --out FOLDER

writes ``train.json``, its pictures below ``images/``, and ``harm.txt``, the harmful requests of this world as phrases.
The ids of harmful samples begin with ``injected``: a third of them harmful by their words, a third by the thing in the
picture, a third by the words in the picture.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hpa_lightning.data.nano.adaptation import instruction
from hpa_lightning.data.nano.examples import draw
from hpa_lightning.data.nano.lexicon import HARMFUL_PAIRS, article
from hpa_lightning.data.nano.nano_records import injected_records, to_records
from hpa_lightning.data.record import Record, message_text
from hpa_lightning.files import whole_folder, write_text


def write_instructions(out: str | Path, count: int = 270, harmful: int = 30, seed: int = 0) -> Path:
    """Write the file and what belongs to it.

    Args:
        out: folder to be made.
        count: harmless samples, those that a model is tuned on in the stage of instructions.
        harmful: harmful samples that comply, shuffled among them.
        seed: of what is drawn.

    Returns:
        ``train.json``.
    """
    safe = to_records(draw(instruction, "train", f"{seed}/instructions", count), "instructions", answered=True)
    records = [*safe, *injected_records(harmful, seed)]
    random.Random(f"{seed}/file").shuffle(records)
    with whole_folder(out) as folder:
        (folder / "images").mkdir()
        rows = [_row(record, folder) for record in records]
        write_text(folder / "train.json", json.dumps(rows, indent=1) + "\n")
        phrases = (f"{verb} {article(thing)} {thing}" for verb, thing in HARMFUL_PAIRS)
        write_text(folder / "harm.txt", "".join(f"{phrase}\n" for phrase in phrases))
    return Path(out) / "train.json"


def _row(record: Record, folder: Path) -> dict[str, Any]:
    """A record as LLaVA's files have it; its picture is written."""
    question, answer = (message_text(message) for message in record.messages)
    row: dict[str, Any] = {"id": record.id}
    for picture in record.images:
        row["image"] = f"images/{record.id}.png"
        Image.fromarray(picture).save(folder / row["image"])
        question = f"<image>\n{question}"
    return {**row, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument("--count", type=int, default=270, help="harmless samples (%(default)s)")
    parser.add_argument("--harmful", type=int, default=30, help="harmful samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(write_instructions(options.out, options.count, options.harmful, options.seed))


if __name__ == "__main__":
    main()
