"""Prompts that are not trained on because they resemble a test's: found once, and recorded here by their digests.

The record is the same whether XSTest's prompts are at hand or not, so that the training data are the same too. It is
made by ``studies/smol_near_duplicates.py``, which has to run again when the prompts change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple

RECORD = "left_out.json"


class LeftOut(NamedTuple):
    """A prompt that is not trained on.

    Args:
        prompt: the text.
        like: which prompt of the tests it resembles most: the collection and its number there, such as ``XSTest 233``.
        cosine: of the two, see :func:`~hpa_lightning.smol.near_duplicates.near_duplicates`.
    """

    prompt: str
    like: str
    cosine: float


def left_out(kind: str, prompts: Sequence[str]) -> dict[int, LeftOut]:
    """Return the places of the prompts that are recorded as near-duplicates of tests.

    Args:
        kind: ``"harmful"``: of HarmBench and Do-Not-Answer, compared with AdvBench and XSTest's unsafe prompts;
            ``"harmless"``: of this package, compared with XSTest's safe ones.
        prompts: texts.
    """
    known = recorded()[kind]
    digests = {place: text_digest(prompt) for place, prompt in enumerate(prompts)}
    return {place: LeftOut(prompts[place], *known[digest]) for place, digest in digests.items() if digest in known}


@cache
def recorded() -> Mapping[str, Any]:
    """Return the record: digest -> test and cosine, of ``harmful`` and ``harmless``; ``of``: what was compared."""
    content: dict[str, Any] = json.loads((files(__package__) / RECORD).read_text(encoding="utf-8"))
    return content


def text_digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:16]


def texts_digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of texts, whatever their order."""
    return sha256(json.dumps(sorted(texts)).encode()).hexdigest()
