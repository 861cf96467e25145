"""The texts of a record that a filter looks at."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from hpa_lightning.data.record import Record, message_text
from hpa_lightning.values import names, nearest

ROLES = ("system", "user", "assistant")


class TurnText(NamedTuple):
    """The text of one turn."""

    where: str
    text: str


def check_roles(roles: Collection[str], owner: str) -> tuple[str, ...]:
    """Return the roles, if there is one and all of them are known.

    Raises:
        ValueError: named by ``owner``.
    """
    unknown = [role for role in roles if role not in ROLES]
    if isinstance(roles, str) or not roles or unknown:
        meant = nearest(str(unknown[0]), ROLES) if unknown and not isinstance(roles, str) else ""
        given = repr(roles) if isinstance(roles, str) else names(roles)
        raise ValueError(f"{owner}: roles is {given}; expected a list of {', '.join(ROLES)}{meant}.")
    return tuple(roles)


def turn_texts(record: Record, roles: Collection[str]) -> Iterator[TurnText]:
    """Yield the texts of these roles; references beside the turns (of test files), and a rejected answer, are answers.

    Turns without a text (an image alone) are left out.
    """
    for index, message in enumerate(record.messages):
        if message["role"] in roles and (text := message_text(message)).strip():
            yield TurnText(f"turn {index} ({message['role']})", text)
    if "assistant" in roles:
        others = [(f"reference {index}", answer) for index, answer in enumerate(record.answers)]
        others += [("the rejected answer", record.rejected)]
        yield from (TurnText(where, text) for where, text in others if text.strip())
