"""One conversation about images, in the form that every reader produces and every loader consumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpa_lightning.data.images import MAX_PIXELS, EncodedImage, is_file, read_rgb, to_rgb, too_large
from hpa_lightning.values import shown


@dataclass(frozen=True)
class Record:
    """A conversation with its images, and for evaluation the accepted answers.

    A training record ends with an assistant turn. An evaluation record ends with a user turn and has ``answers``; a
    record that ends with an assistant turn can be evaluated too (see :meth:`prompt_and_references`).

    Args:
        id: identifier, used in predictions and messages.
        messages: Hugging Face chat format,
            ``{"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}]}``; an answer with
            ``"loss": False`` is context and is not learnt.
        images: one entry for each image part, in order: a path (opened lazily), an :class:`EncodedImage`, a PIL image,
            or a uint8 array ``(height, width, 3)``.
        answers: accepted reference answers.
        choices: the texts to choose from, where a question is of multiple choice; the right one is the first of the
            answers, further answers are other forms of it.
        categories: what the set's publisher sorts its records by: scheme -> category, such as ``{"subtask": "count"}``.
            Scores are reported for each category too.
        group: records of one group are scored together by some metrics (the rotations of a question, the two questions
            about an image); ``""``: none.
        rejected: of a preference pair, the worse text instead of the final answer; "" where there is none. What does
            not train on pairs learns the final answer alone.
        source: where the record is, such as ``train.json[12]``; used in error messages only.

    >>> record = Record("7", user_turn("What is shown?", images=1), images=("cat.jpg",), answers=("a cat",))
    >>> record.prompt
    'What is shown?'
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[Any, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = field(default=(), kw_only=True)
    categories: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    group: str = field(default="", kw_only=True)
    rejected: str = field(default="", kw_only=True)
    source: str = field(default="", compare=False)

    @property
    def where(self) -> str:
        """Return the source if it is known, else the id."""
        return self.source or f"record {shown(self.id)}"

    @property
    def prompt(self) -> str:
        """Return the text of the last user turn."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                return message_text(message)
        return ""

    @property
    def ends_with_answer(self) -> bool:
        """Return whether the last turn is an assistant's."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def prompt_and_references(self) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
        """Return the messages up to the last user turn, and the references.

        A final assistant turn is cut off; it becomes the only reference unless ``answers`` are given.
        """
        if not self.ends_with_answer:
            return self.messages, self.answers
        return self.messages[:-1], self.answers or (message_text(self.messages[-1]),)


def user_turn(text: str, images: int = 0) -> tuple[dict[str, Any], ...]:
    """Return the messages of one user turn: ``images`` image parts, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    return ({"role": "user", "content": [*parts, {"type": "text", "text": text}]},)


def assistant_turn(text: str) -> tuple[dict[str, Any], ...]:
    """Return the messages of one assistant turn."""
    return ({"role": "assistant", "content": [{"type": "text", "text": text}]},)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text parts of one message, joined."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def check_record(record: Record, *, needs_answer: bool = False, needs_reference: bool = False) -> None:
    """Check the turns, the parts and the number of images of ``record``.

    Raises:
        ValueError: named by the record's source: unknown roles or parts, roles that do not alternate from the user's,
            image parts that do not match ``images`` or are in an answer, half a surrogate pair in any text, no final
            assistant turn, or none that is learnt, where ``needs_answer``, no reference where ``needs_reference``,
            fewer than two choices, an empty one, or an answer that is none of them.
    """
    turns = [_role(record, message) for message in record.messages]
    alternating = turns[1:] if turns[:1] == ["system"] else turns
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(alternating))]
    if not alternating or alternating != expected:
        raise ValueError(
            f"{record.where}: roles are {shown(turns)}; expected an optional system turn, then user and assistant in "
            "turn, user first."
        )
    parts = sum(_image_parts(record, message) for message in record.messages)
    for text in (record.id, record.group, record.rejected, *record.answers, *record.choices):
        if _has_surrogate(text):
            raise ValueError(_half_a_pair(record, text))
    if parts != len(record.images):
        raise ValueError(f"{record.where}: {parts} image parts in the messages but {len(record.images)} images.")
    if record.ends_with_answer and not message_text(record.messages[-1]).strip():
        raise ValueError(f"{record.where}: the last assistant turn is empty; expected an answer.")
    if record.rejected:
        check_pair(record)
    if needs_answer:
        check_answer(record)
    if needs_reference:
        check_reference(record)
    if record.choices:
        _check_choices(record)


def check_answer(record: Record) -> None:
    """Check that a record can be trained on.

    Raises:
        ValueError: named by the record's source: no final assistant turn, or none that is learnt.
    """
    if not record.ends_with_answer:
        raise ValueError(f"{record.where}: a training record must end with an assistant turn; it ends with the user's.")
    if not any(is_learnt(message) for message in record.messages):
        raise ValueError(f"{record.where}: every answer has loss: false; nothing of the record can be learnt.")


def check_pair(record: Record) -> None:
    """Check that a record is a preference pair.

    Raises:
        ValueError: named by the record's source: no chosen answer, no rejected one, or twice the same.
    """
    if not record.ends_with_answer:
        raise ValueError(f"{record.where}: a preference pair must end with the chosen answer; it ends with the user's.")
    if not record.rejected.strip():
        raise ValueError(f"{record.where}: no rejected answer; expected a preference pair.")
    if message_text(record.messages[-1]).split() == record.rejected.split():
        raise ValueError(f"{record.where}: the chosen and the rejected answer are the same, {shown(record.rejected)}.")


def check_reference(record: Record) -> None:
    """Check that there is an answer to score against.

    Raises:
        ValueError: named by the record's source.
    """
    if not record.prompt_and_references()[1]:
        raise ValueError(
            f"{record.where}: no reference answer; expected `answers` or a final assistant turn to score against."
        )


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Return whether a message is an answer that counts in the loss: one without ``"loss": False``."""
    return message["role"] == "assistant" and bool(message.get("loss", True))


def _role(record: Record, message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list | tuple):
        raise ValueError(f"{record.where}: a turn is {shown(message)}; expected {{'role': ..., 'content': [...]}}.")
    return message.get("role")


def _image_parts(record: Record, message: Mapping[str, Any]) -> int:
    """Check the parts of a message and return how many are images."""
    if isinstance(message["content"], str):
        raise ValueError(
            f"{record.where}: the content of a {message['role']} turn is a string; expected a list of "
            '{"type": "image"} and {"type": "text", "text": ...} parts.'
        )
    images = 0
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "text") or (kind == "text" and not isinstance(part.get("text"), str)):
            raise ValueError(
                f'{record.where}: content part {shown(part)}; expected {{"type": "image"}} or '
                '{"type": "text", "text": <string>}.'
            )
        if kind == "text" and _has_surrogate(part["text"]):
            raise ValueError(_half_a_pair(record, part["text"]))
        images += kind == "image"
    if images and message["role"] == "assistant":
        raise ValueError(f"{record.where}: an image part in an assistant turn; only prompts may hold images.")
    return images


def _half_a_pair(record: Record, text: str) -> str:
    return (
        f"{record.where}: the text {shown(text)} holds half of a surrogate pair, which is no character and which no "
        "tokenizer takes; repair the file (an emoji was cut, mostly)."
    )


def _has_surrogate(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_choices(record: Record) -> None:
    if len(record.choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in record.choices):
        raise ValueError(f"{record.where}: the choices are {shown(record.choices)}; expected two or more texts.")
    answers = record.prompt_and_references()[1]
    if answers and answers[0] not in record.choices:
        raise ValueError(
            f"{record.where}: the answer {shown(answers[0])} is none of the choices {shown(record.choices)}."
        )
    if len({answer for answer in answers if answer in record.choices}) > 1:
        raise ValueError(
            f"{record.where}: the answers {shown(answers)} are several of the choices {shown(record.choices)}; "
            "expected one right choice."
        )


def open_image(image: Any, where: str, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Return ``image`` as people see it, an RGB PIL image (see :func:`~hpa_lightning.data.images.to_rgb`).

    Args:
        image: path, encoded or PIL image, or uint8 array ``(height, width, 3)``.
        where: the record, for messages.
        max_pixels: a larger image is refused before it is decoded; ``None``: none is.

    Raises:
        ValueError: a file that is missing, no image or too large, named by record and path; or an unknown type.
    """
    if isinstance(image, EncodedImage):
        try:
            return image.decode(max_pixels)
        except ValueError as error:
            raise ValueError(f"{where}: the image {image.name!r} cannot be decoded: {error}.") from error
    if isinstance(image, Image.Image):
        try:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(too_large(*image.size, max_pixels))
            return to_rgb(image)
        except Exception as error:  # one that PIL opens lazily may be broken in as many ways as a file
            raise ValueError(f"{where}: the PIL image cannot be used: {error}.") from error
    if isinstance(image, np.ndarray) or hasattr(image, "__array__"):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f"{where}: image array of dtype {array.dtype} and shape {array.shape}; expected uint8 (h, w, 3)."
            )
        return Image.fromarray(array)
    if isinstance(image, str | Path):
        try:
            return read_rgb(image, max_pixels)
        except FileNotFoundError:
            raise ValueError(f"{where}: image file {shown(str(image))} does not exist; check `image_folder`.") from None
        except ValueError as error:
            raise ValueError(f"{where}: image file {shown(str(image))} cannot be read: {error}.") from error
    raise ValueError(f"{where}: image of type {type(image).__name__}; expected a path, a PIL image or a uint8 array.")


def missing_images(records: Iterable[Record], is_there: Callable[[str], bool] = is_file) -> list[tuple[str, str]]:
    """Return (record, path) of every image path that is not a file.

    Args:
        records: with their images.
        is_there: asked for every path; may remember what it was asked.
    """
    missing = []
    for record in records:
        for image in record.images:
            if isinstance(image, str | Path) and not is_there(str(image)):
                missing.append((record.where, str(image)))
    return missing
