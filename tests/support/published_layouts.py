"""Benchmarks in the layouts in which they are published, with made-up questions, and answers to them."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROUND = 1_000_000
THINGS = ("a red cat", "two dogs", "one green boat", "no tree", "blue paint", "five birds", "an old house")
#: Forms in which models name an option; ``{letter}``, ``{text}``.
FORMS = ("{letter}", "{letter}.", "({letter})", "{letter}. {text}", "The answer is {letter}.", "{text}")


def jpeg(seed: int, size: int = 32) -> bytes:
    """A small picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), ((37 * seed) % 256, (91 * seed) % 256, (153 * seed) % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def mmbench_rows(questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of MMBench's TSV, all rotations of a question one behind the other; some have two options or three."""
    draw = random.Random(seed)
    rows = []
    for index in range(questions):
        options = draw.sample(THINGS, draw.choice((2, 3, 4, 4)))
        right = draw.randrange(len(options))
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": turn * ROUND + index,
                    "question": f"What is in picture {index}?",
                    "hint": "Look well." if index % 3 == 0 else "",
                    **{letter: turned[k] if k < len(turned) else "" for k, letter in enumerate("ABCD")},
                    "answer": "ABCD"[(right - turn) % len(options)],
                    "category": ("identity_reasoning", "ocr", "object_localization")[index % 3],
                    # Rotations hold the index of the row that has the picture, as upstream's files do.
                    "image": base64.b64encode(jpeg(index)).decode() if turn == 0 else str(index),
                    "source": "made",
                    "l2-category": ("attribute_reasoning", "coarse_perception")[index % 2],
                    "comment": "",
                    "split": ("dev", "test")[index % 4 == 0],
                }
            )
    return rows


def write_mmbench(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def mmbench_predictions(rows: Sequence[dict[str, Any]], seed: int = 1) -> list[str]:
    """Answers that are right in most rows, in several forms; some name nothing."""
    draw = random.Random(seed)
    answers = []
    for row in rows:
        letters = [letter for letter in "ABCD" if row[letter]]
        letter = row["answer"] if draw.random() < 0.85 else draw.choice(letters)
        answers.append(draw.choice(FORMS).format(letter=letter, text=row[letter]))
        if draw.random() < 0.04:
            answers[-1] = draw.choice(("", "I do not know", "unclear"))
    return answers


#: Subtask -> pictures of a small MME.
MME_PICTURES = {"existence": 6, "count": 5, "artwork": 7, "OCR": 4, "code_reasoning": 5, "text_translation": 3}
MME_ANSWERS = ("{a}", "{b}.", "{c}, it is.", "{b}", "It is", "Not sure", "yesterday", "Now", "")


def mme_pairs(pictures: dict[str, int] | None = None) -> list[tuple[str, str, str, str]]:
    """Subtask, picture, question and answer of every question."""
    return [
        (subtask, f"{number:04d}", f"Is this {what} {number}? Please answer yes or no.", answer)
        for subtask, count in (pictures or MME_PICTURES).items()
        for number in range(count)
        for what, answer in (("picture", "Yes"), ("sound", "No"))
    ]


def mme_predictions(pairs: Sequence[tuple[str, str, str, str]], seed: int = 2) -> list[str]:
    """Answers that are right in most rows; some are neither yes nor no, some are read as one by their first letters."""
    draw = random.Random(seed)
    answers = []
    for *_, right in pairs:
        said = right if draw.random() < 0.8 else draw.choice(("Yes", "No"))
        form = draw.choice(MME_ANSWERS[:4]) if draw.random() < 0.85 else draw.choice(MME_ANSWERS[4:])
        answers.append(form.format(a=said.lower(), b=said, c=said.upper()))
    return answers


def write_mme(folder: Path, pairs: Sequence[tuple[str, str, str, str]]) -> Path:
    """Upstream's folder: some subtasks with pictures and texts side by side, some with folders for each."""
    for subtask, name, question, answer in pairs:
        apart = subtask in ("artwork", "landmark")
        texts = folder / subtask / ("questions_answers_YN" if apart else "")
        pictures = folder / subtask / ("images" if apart else "")
        texts.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / f"{name}.{'png' if subtask == 'count' else 'jpg'}").write_bytes(jpeg(int(name)))
        with (texts / f"{name}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{question}\t{answer}\n")
    return folder


def seed_bench(questions: int, videos: int = 2) -> dict[str, Any]:
    """The content of SEED-Bench.json."""
    dimensions = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    return {
        "questions": [
            {
                "answer": "ABCD"[index % 4],
                **{f"choice_{letter}": f"{THINGS[k]} {index}" for k, letter in enumerate("abcd")},
                "data_id": f"{index}_{index}.jpg" if index < questions else f"{index}.webm",
                "data_type": "image" if index < questions else "video",
                "question": f"What does picture {index} show?",
                "question_id": f"v1-{index}" if index % 2 else index,
                "question_type_id": 10 if index >= questions else 1 + index % 2,
                **({"segment": [1.0, 2.0]} if index >= questions else {}),
            }
            for index in range(questions + videos)
        ],
        "question_type": dimensions,
    }


def write_seed_bench(folder: Path, questions: int = 8, videos: int = 2) -> Path:
    content = seed_bench(questions, videos)
    (folder / "SEED-Bench-image").mkdir(parents=True, exist_ok=True)
    for index in range(questions):
        (folder / "SEED-Bench-image" / f"{index}_{index}.jpg").write_bytes(jpeg(index))
    path = folder / "SEED-Bench.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
