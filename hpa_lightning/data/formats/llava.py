"""The training and test files of LLaVA, which CoIN and MCITlib share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpa_lightning.data.images import image_of_cell
from hpa_lightning.data.records import Record, assistant_turn, user_turn

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse_conversations(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of ``{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}``.

    ``image`` is a path, a list of paths, or missing (text-only). All images stand at the front of the first human
    turn, as in LLaVA's own preprocessing; the marks ``<image>`` in the text are taken out.

    Raises:
        ValueError: named by ``where``.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: 'conversations' is {turns!r}; expected a list of turns.")
    images = parse_images(row, "image", where)
    messages: list[dict[str, Any]] = []
    marks = 0
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or turn.get("from") not in _ROLES:
            raise ValueError(
                f"{where}: turn {index} is {turn!r}; expected {{'from': 'human' or 'gpt', 'value': <string>}}."
            )
        role, text = _ROLES[turn["from"]], turn["value"]
        marks += text.count(IMAGE_MARK)
        text = text.replace(IMAGE_MARK, "").strip()
        if role == "assistant":
            messages += assistant_turn(text)
        elif role == "system":
            messages.append({"role": "system", "content": [{"type": "text", "text": text}]})
        else:
            is_first = not any(message["role"] == "user" for message in messages)
            messages += user_turn(text, images=len(images) if is_first else 0)
    if marks not in (0, len(images)):
        raise ValueError(f"{where}: {marks} marks {IMAGE_MARK} in the text but {len(images)} images.")
    identity = row.get("id", row.get("question_id", where))
    return Record(str(identity), tuple(messages), images, parse_answers(row, where), where)


def parse_question(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of a test file's ``{"question_id", "image", "text", "answer"}``.

    ``answer`` (or ``answers``, or ``answer_bbox``) is a string or a list of accepted strings.

    Raises:
        ValueError: named by ``where``.
    """
    text = row.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' is {text!r}; expected the question as a string.")
    images = parse_images(row, "image", where)
    marks = text.count(IMAGE_MARK)
    if marks not in (0, len(images)):
        raise ValueError(f"{where}: {marks} marks {IMAGE_MARK} in the text but {len(images)} images.")
    messages = user_turn(text.replace(IMAGE_MARK, "").strip(), images=len(images))
    return Record(str(row["question_id"]), messages, images, parse_answers(row, where), where)


def parse_images(row: Mapping[str, Any], key: str, where: str) -> tuple[Any, ...]:
    """Return the images under ``key``: none, one, or a list; paths, or encoded images out of a parquet file."""
    value = row.get(key)
    if value is None or value == "":
        return ()
    images = value if isinstance(value, list) else [value]
    if not all(isinstance(image, str | bytes | Mapping) and image for image in images):
        raise ValueError(f"{where}: {key!r} is {value!r}; expected a path or a list of paths.")
    return tuple(image if isinstance(image, str) else image_of_cell(image, Path(), where) for image in images)


def parse_answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the accepted answers under ``answers`` or ``answer``: none, one, or a list.

    CoIN's grounding file has its box under ``answer_bbox``.
    """
    value = row.get("answers", row.get("answer", row.get("answer_bbox")))
    if value is None:
        return ()
    answers = value if isinstance(value, list) else [value]
    if not all(isinstance(answer, str | int | float) for answer in answers):
        raise ValueError(f"{where}: the answer is {value!r}; expected a string or a list of strings.")
    return tuple(str(answer) for answer in answers)
