"""Preference pairs in the forms that trainers read: a prompt, a chosen and a rejected answer, as texts or as turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpa_lightning.data.published_files import check_option
from hpa_lightning.data.readers.row_fields import identity_of
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import ImagePlace, Turn, check_image_place, messages_of, role_of
from hpa_lightning.data.record import Record, message_text
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.pair_rows import MISSING, Faulty, PairFault, files_of, images_of, read_pairs
from hpa_lightning.values import names, shown

PROMPT_KEYS = ("prompt", "question", "instruction", "query", "messages", "conversations")


@dataclass(frozen=True)
class PreferenceFile(RecordSet):
    """Pairs of a file, as TRL and LLaMA-Factory read them.

    A row has ``chosen`` and ``rejected``: texts, one message, or lists of messages; a prompt under the first of
    ``prompt``, ``question``, ``instruction``, ``query`` (text or messages), ``messages`` and ``conversations``; and
    ``image`` or ``images``. Without a prompt, ``chosen`` and ``rejected`` are whole conversations that are the same but
    for their last turn. Messages are ``{"role", "content"}`` or ``{"from", "value"}``.

    Args:
        files: a JSON, JSON-lines or parquet file, or a pattern.
        image_folder: folder that image paths start from; each file's own folder when ``None``.
        image_place: where an image of a mark ``<image>`` is in its turn, see :func:`read_records`.
        faulty: ``"stop"``: rows that are no pairs are an error. ``"skip"``: they are left out and counted.

    Raises:
        ValueError: an unknown option; when read: no such files, rows that are no pairs, broken ones.
    """

    files: str
    image_folder: str | None = None
    image_place: ImagePlace = "front"
    faulty: Faulty = "stop"

    def __post_init__(self) -> None:
        check_image_place(self.image_place)
        check_option(self, "faulty", ("stop", "skip"))

    def read(self) -> list[Record]:
        """Read the pairs, in the order of the files."""
        return read_pairs(files_of(self.files, "file of preference pairs"), self._record, self.faulty)

    def _record(self, row: Row, path: Path, index: int, where: str) -> tuple[Record, None]:
        key = next((key for key in PROMPT_KEYS if row.get(key)), None)
        ends = [_turns(row.get(name), name, "assistant", where) for name in ("chosen", "rejected")]
        if key is not None:
            prompt = _turns(row[key], key, "user", where)
            if len(ends[0]) != 1 or len(ends[1]) != 1:
                ends = [_without(prompt, turns, where) for turns in ends]
        elif len(ends[0]) > 1 and ends[0][:-1] == ends[1][:-1]:
            prompt, ends = ends[0][:-1], [turns[-1:] for turns in ends]
        else:
            raise ValueError(
                f"{where}: the row has {names(sorted(map(str, row)))}; expected a prompt under one of "
                f"{', '.join(PROMPT_KEYS)}, or conversations in chosen and rejected that differ in the last turn alone."
            )
        (chosen,), (rejected,) = ends
        if chosen.role != "assistant" or rejected.role != "assistant":
            raise ValueError(f"{where}: chosen and rejected end with a turn of the user; expected the assistant's.")
        images = images_of(row, path.parent if self.image_folder is None else Path(self.image_folder), where)
        messages = messages_of([*prompt, chosen], len(images), self.image_place, where)
        other = message_text({"content": list(rejected.parts)}).strip()
        if not other or not message_text(messages[-1]).strip():
            raise PairFault(MISSING, f"{where}: the {'chosen' if other else 'rejected'} answer is empty.")
        identity = identity_of({"id": row.get("id", f"{path.stem}-{index}")}, where)
        return Record(identity, messages, images, rejected=other, source=where), None


def _turns(value: Any, key: str, role: str, where: str) -> list[Turn]:
    """The turns under a key: a text is one of ``role``."""
    if isinstance(value, str) and value.strip():
        return [Turn.of_text(role, value)]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [_turn(turn, index, key, where) for index, turn in enumerate(value)]
    if key in ("chosen", "rejected"):
        raise PairFault(MISSING, f"{where}: {key!r} is {shown(value)}; expected a text or messages.")
    raise ValueError(f"{where}: {key!r} is {shown(value)}; expected a text or messages.")


def _turn(turn: Any, index: int, key: str, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: {key}[{index}] is {shown(turn)}; expected a message.")
    role = role_of(turn.get("role", turn.get("from")), index, where)
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return Turn.of_text(role, content)
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}: {key}[{index}] has the content {shown(content)}; expected a text or parts.")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise ValueError(f"{where}: {key}[{index}] holds the part {shown(part)}; expected text or image.")
    return Turn(role, parts)


def _without(prompt: list[Turn], turns: list[Turn], where: str) -> list[Turn]:
    """The last turn of a conversation that begins with the prompt."""
    if turns[:-1] != prompt:
        raise ValueError(
            f"{where}: chosen or rejected has {len(turns)} turns that do not begin with the prompt's {len(prompt)}; "
            "expected the answer alone, or the prompt and the answer."
        )
    return turns[-1:]
