"""The Hugging Face and OpenAI chat format: ``messages``, perhaps beside a column ``images``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpa_lightning.data.readers.row_fields import (
    COMMON_KEYS,
    Reading,
    identity_of,
    images_of,
    system_of,
    turns_of,
)
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import LOSS_KEYS, Turn, is_learnt, messages_of, role_of
from hpa_lightning.data.record import Record
from hpa_lightning.values import shown

_TEXTS = frozenset({"text", "input_text", "output_text"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_IMAGE_KEYS = ("path", "image", "url", "image_url", "base64")


def parse_chat(row: Row, where: str, reading: Reading | None = None) -> Record:
    """Return the record of ``{"messages": [{"role", "content"}], "images": [paths]}``.

    ``content`` is a string, in which marks ``<image>`` may stand (LLaMA-Factory, ms-swift), or a list of parts. Images
    are in ``images`` (or ``image``) in the order of the parts or marks, or in the parts themselves, under ``path``,
    ``image``, ``url``, ``base64`` or OpenAI's ``image_url``.

    Raises:
        ValueError: named by ``where``.
    """
    reading = reading or Reading()
    reading.note_unread(row, COMMON_KEYS | {"messages"}, where)
    turns: list[Turn] = []
    embedded: list[Any] = []
    for index, turn in enumerate(turns_of(row, "messages", where)):
        reading.note_unread(turn, {"role", "content", *LOSS_KEYS}, where, "messages[].")
        role = role_of(turn.get("role"), index, where)
        content = turn.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
            raise ValueError(f"{where}: the content of turn {index} is {shown(content)}; expected a string or parts.")
        parts = [_part(part, embedded, where, reading) for part in content]
        turns.append(Turn(role, parts, is_learnt(turn, role, index, where)))
    reading.note_marks(turns, where)
    images = images_of(row, where, reading)
    if images and embedded:
        raise ValueError(f"{where}: images both in the parts and in the column 'images'; expected one of the two.")
    images = images or tuple(embedded)
    if images:
        reading.note_image_marks(turns)
    messages = messages_of(turns, len(images), reading.image_place, where, system_of(row, where))
    return Record(identity_of(row, where), messages, images, reading.answers(row, where), source=where)


def _part(part: Mapping[str, Any], embedded: list[Any], where: str, reading: Reading) -> dict[str, Any]:
    """The part as records have it; an image that it holds goes into ``embedded``."""
    # Parquet gives every part the keys of all: those that a part does not have are null.
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.get("type", "text" if "text" in part else "image" if set(part) & set(_IMAGE_KEYS) else None)
    if not isinstance(kind, str) or kind not in _TEXTS | _IMAGES:
        raise ValueError(
            f"{where}: content part {shown(part)}; expected a text or an image, other media cannot be read."
        )
    if kind in _TEXTS:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: content part {shown(part)}; expected a text under 'text'.")
        reading.note_unread(part, {"type", "text"}, where, "messages[].content[].")
        return {"type": "text", "text": part["text"]}
    reading.note_unread(part, {"type", "detail", *_IMAGE_KEYS}, where, "messages[].content[].")
    given = [key for key in _IMAGE_KEYS if key in part]
    if len(given) > 1:
        raise ValueError(f"{where}: content part {shown(part)}; expected one of {', '.join(given)}.")
    if given:
        value = part[given[0]]
        if given[0] == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if given[0] == "base64":
            value = f"data:;base64,{value}"
        embedded.append(reading.image(value, where))
    return {"type": "image"}
