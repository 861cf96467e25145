"""HTML pages from the templates in ``templates/``.

Every value is escaped on its way into a page: no page gets its HTML from Python. A page is one file; style, script and
pictures are in it and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hpa_lightning.table import format_cell


@dataclass(frozen=True)
class Image:
    """A PNG file with its caption and the text that stands for it (screen readers)."""

    path: Path
    caption: str
    alt: str


@dataclass(frozen=True)
class Fact:
    """A term and what is said of it.

    Args:
        term: what it is about.
        values: on lines of their own; of ``code``, one after the other in time.
        code: whether the values are code.
    """

    term: str
    values: tuple[str, ...]
    code: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a paragraph.

    Args:
        mark: ``"code"``, ``"strong"``, or ``""`` for plain text.
        text: of code and plain text.
        pieces: of what is strong.
    """

    mark: str
    text: str = ""
    pieces: tuple[Piece, ...] = ()


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a page.

    Args:
        template: name of a file in ``templates/``.
        values: what the template asks for; one that is missing is an error.
    """
    return _environment().get_template(template).render(values)


def paragraphs(text: str) -> list[tuple[Piece, ...]]:
    """The paragraphs of a text, which empty lines part; see :func:`marked`."""
    return [marked(part.strip()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def marked(text: str) -> tuple[Piece, ...]:
    """The pieces of a paragraph: backticks mark code, double asterisks what is important.

    >>> [(piece.mark, piece.text) for piece in marked("Keep `W` as it is")]
    [('', 'Keep '), ('code', 'W'), ('', ' as it is')]
    """
    pieces = []
    for part in re.split(r"(`[^`]+`|\*\*(?:`[^`]+`|[^*`])+\*\*)", text):
        if re.fullmatch(r"`[^`]+`", part):
            pieces.append(Piece("code", part[1:-1]))
        elif re.fullmatch(r"\*\*.+\*\*", part, re.DOTALL):
            pieces.append(Piece("strong", pieces=marked(part[2:-2])))
        elif part:
            pieces.append(Piece("", part))
    return tuple(pieces)


def embedded(path: Path, media_type: str) -> str:
    """The address that holds the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("hpa_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(cell=format_cell, embedded=embedded, marked=marked, paragraphs=paragraphs)
    return found
