"""Turns of a conversation as files have them, and where their images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hpa_lightning.values import shown

IMAGE_MARK = "<image>"

ImagePlace = Literal["front", "as_written"]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_TOOLS = frozenset({"observation", "function", "function_call", "tool", "tool_call", "tool_response", "ipython"})

#: Of a turn: whether it is learnt (ms-swift, OpenAI, axolotl); false or 0 takes it out of the loss.
LOSS_KEYS = ("loss", "weight", "train", "training", "loss_scale")


@dataclass(frozen=True)
class Turn:
    """One turn.

    Args:
        role: ``"system"``, ``"user"`` or ``"assistant"``.
        parts: ``{"type": "image"}`` and ``{"type": "text", "text": ...}``; marks ``<image>`` still are in the texts.
        learnt: whether an answer counts in the loss.
    """

    role: str
    parts: Sequence[dict[str, Any]]
    learnt: bool = True

    @classmethod
    def of_text(cls, role: str, text: str, learnt: bool = True) -> Turn:
        """Return a turn of one text."""
        return cls(role, ({"type": "text", "text": text},), learnt)


def role_of(name: Any, index: int, where: str) -> str:
    """Return the role that a file calls ``name``: ``human``, ``gpt`` and others have theirs.

    Raises:
        ValueError: named by ``where``: an unknown role, or one of tool calls.
    """
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        tools = isinstance(name, str) and name.lower() in _TOOLS
        raise ValueError(
            f"{where}: turn {index} is of {shown(name)}; "
            + ("tool calls cannot be read." if tools else f"expected one of {', '.join(_ROLES)}.")
        )
    return role


def is_learnt(turn: Mapping[str, Any], role: str, index: int, where: str) -> bool:
    """Return whether a turn counts in the loss: what one of ``LOSS_KEYS`` says, else an answer does.

    Raises:
        ValueError: named by ``where``: a weight that is neither 0 nor 1, two that differ, or a turn of the user that
            is to be learnt.
    """
    given = {key: turn[key] for key in LOSS_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{where}: {key!r} of turn {index} is {shown(value)}; expected true, false, 1 or 0.")
    values = {bool(value) for value in given.values()}
    if len(values) == 2:
        raise ValueError(f"{where}: turn {index} has {given}; expected them to say the same.")
    if role != "assistant" and values == {True}:
        raise ValueError(f"{where}: turn {index} of the {role} has {given}; only answers can be learnt.")
    return role == "assistant" and values != {False}


def messages_of(
    turns: Sequence[Turn], images: int, place: ImagePlace, where: str, system: str | None = None
) -> tuple[dict[str, Any], ...]:
    """Return the messages of a record, every image in the turn that names it.

    Without a mark ``<image>`` or an image part all images are at the front of the first user turn. A turn with marks
    gets as many images as it has. An image *part* stays where it is.

    Args:
        turns: as the file has them.
        images: how many images the record has.
        place: of an image in its turn. ``"front"``: before the text, out of which the marks are taken, as LLaVA's
            preprocessing does. ``"as_written"``: where its mark is.
        where: the record, for messages.
        system: a prompt that stands beside the turns; the first message.

    Returns:
        The messages; an answer that is not learnt has the key ``"loss"`` with the value ``False``.

    Raises:
        ValueError: named by ``where``: as many marks or parts as there are images are not there, both marks and parts,
            an image in a turn that is not the user's, or two system prompts.
    """
    marks = [sum(part["text"].count(IMAGE_MARK) for part in turn.parts if part["type"] == "text") for turn in turns]
    given = [sum(part["type"] == "image" for part in turn.parts) for turn in turns]
    if any(marks) and any(given):
        raise ValueError(
            f"{where}: {sum(given)} image parts, and {sum(marks)} marks {IMAGE_MARK} in the text; expected one kind."
        )
    for what, counts in ((f"marks {IMAGE_MARK} in the text", marks), ("image parts", given)):
        if sum(counts) not in (0, images):
            raise ValueError(f"{where}: {sum(counts)} {what} but {images} images.")
        for turn, count in zip(turns, counts, strict=True):
            if count and turn.role != "user":
                raise ValueError(f"{where}: {what} of the {turn.role}; only the user's turns may hold images.")
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), -1)
    unplaced = images if not any(marks) and not any(given) else 0
    messages: list[dict[str, Any]] = []
    if system is not None:
        if any(turn.role == "system" for turn in turns):
            raise ValueError(f"{where}: a key 'system' and a system turn; expected one of the two.")
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for index, (turn, count) in enumerate(zip(turns, marks, strict=True)):
        parts = _with_images(turn.parts, count, place) if count else [dict(part) for part in turn.parts]
        if index == first:
            parts = [*_image_parts(unplaced), *parts]
        learnt = {} if turn.learnt or turn.role != "assistant" else {"loss": False}
        messages.append({"role": turn.role, "content": parts, **learnt})
    return tuple(messages)


def check_image_place(place: object) -> None:
    """Check that ``place`` is one of the two.

    Raises:
        ValueError: it is not.
    """
    if place not in get_args(ImagePlace):
        raise ValueError(f"image_place is {shown(place)}; expected one of {', '.join(get_args(ImagePlace))}.")


def _with_images(parts: Sequence[Mapping[str, Any]], marks: int, place: ImagePlace) -> list[dict[str, Any]]:
    texts = [part["text"] for part in parts]
    if place == "front":
        kept = [text.replace(IMAGE_MARK, "").strip() for text in texts]
        return [*_image_parts(marks), *({"type": "text", "text": text} for text in kept)]
    found: list[dict[str, Any]] = []
    for text in texts:
        for number, piece in enumerate(text.split(IMAGE_MARK)):
            found += _image_parts(int(number > 0))
            found += [{"type": "text", "text": piece}] if piece else []
    return found


def _image_parts(count: int) -> list[dict[str, Any]]:
    return [{"type": "image"} for _ in range(count)]
