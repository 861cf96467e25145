"""The training and test files of LLaVA, which CoIN and MCITlib share, and ShareGPT's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpa_lightning.data.readers.row_fields import (
    COMMON_KEYS,
    Reading,
    identity_of,
    images_of,
    system_of,
    text_in,
    turns_of,
)
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import LOSS_KEYS, Turn, is_learnt, messages_of, role_of
from hpa_lightning.data.record import Record
from hpa_lightning.values import shown

#: Keys of a turn: the speaker's, the text's.
_SPEAKER = ("from", "role")
_TEXT = ("value", "content")


def parse_conversations(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of ``{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}``.

    ``image`` (or ``images``, as LLaMA-Factory has it) is a path, a list of paths, or missing (text-only); ``system`` is
    a system prompt. Images stand where :func:`messages_of` says.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"conversations"}, where)
    turns = []
    for index, turn in enumerate(turns_of(row, "conversations", where)):
        speaker, text = (next((turn[key] for key in keys if key in turn), None) for keys in (_SPEAKER, _TEXT))
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: turn {index} is {shown(turn)}; expected {{'from': 'human' or 'gpt', 'value': <string>}}."
            )
        reading.note_unread(turn, {*_SPEAKER, *_TEXT, *LOSS_KEYS}, where, "conversations[].")
        role = role_of(speaker, index, where)
        turns.append(Turn.of_text(role, text.strip(), is_learnt(turn, role, index, where)))
    return record_of(row, turns, where, reading)


def parse_pairs(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of ms-swift's ShareGPT form, ``{"conversation": [{"human", "assistant"}, ...], "system"}``.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"conversation"}, where)
    turns = []
    for index, pair in enumerate(turns_of(row, "conversation", where)):
        if not all(isinstance(pair.get(key), str) for key in ("human", "assistant")):
            raise ValueError(f"{where}: turn {index} is {shown(pair)}; expected {{'human', 'assistant'}}, both texts.")
        reading.note_unread(pair, {"human", "assistant"}, where, "conversation[].")
        turns += [Turn.of_text("user", pair["human"]), Turn.of_text("assistant", pair["assistant"])]
    return record_of(row, turns, where, reading)


def parse_question(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of a test file's ``{"question_id", "image", "text", "answer"}``.

    ``answer`` (or ``answers``, or ``answer_bbox``) is a string or a list of accepted strings.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"text"}, where)
    if row.get("text") is None:
        raise ValueError(f"{where}: 'text' is missing; expected the question as a string.")
    return record_of(row, [Turn.of_text("user", text_in(row, "text", where).strip())], where, reading)


def record_of(row: Mapping[str, Any], turns: list[Turn], where: str, reading: Reading) -> Record:
    """Return the record of the turns, with what is beside them in the row.

    Raises:
        ValueError: named by ``where``.
    """
    reading.note_marks(turns, where)
    images = images_of(row, where, reading)
    if images:
        reading.note_image_marks(turns)
    messages = messages_of(turns, len(images), reading.image_place, where, system_of(row, where))
    return Record(identity_of(row, where), messages, images, reading.answers(row, where), source=where)
