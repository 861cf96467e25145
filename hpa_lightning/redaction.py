"""Secrets of a command line, left out of what is written down."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "MASKED"

#: An option or key whose value is a secret: one of these words at the end of its name (not ``max_new_tokens``).
_WORD = r"(?:api|access|private|secret|auth)?[_-]?(?:key|token|secret|password|passwd|passphrase|pwd|credentials?|auth)"
_NAME = re.compile(rf"(?:^|[._\-/]){_WORD}(?:[_-](?:id|value))?$", re.IGNORECASE)
_CAMEL = re.compile(r"(?:[a-z](?:Key|Token|Secret|Password))$")
#: ``"name": "value"`` and ``name=value`` inside a text (a JSON argument, an override, the query of an address).
_PAIR = re.compile(
    rf"""((?:^|[\s,{{?&;'"])['"]?[\w.\-]*?{_WORD}['"]?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|[^\s,}}&'"]+)""", re.IGNORECASE
)
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^\s/@]+@", re.IGNORECASE)
#: How the tokens of Hugging Face, OpenAI, GitHub, AWS, Weights & Biases (40 hexadecimal digits after `local-`) and
#: Slack, and signed web tokens, begin.
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[A-Z0-9]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|local-[0-9a-f]{40}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)


def masked_text(text: str) -> str:
    """Mask what looks like a secret within one text: credentials in addresses, ``key=value``, well-known tokens.

    >>> masked_text("https://me:pw@host/x?token=abc hf_" + "a" * 30)
    'https://MASKED@host/x?token=MASKED MASKED'
    """
    return _PAIR.sub(rf"\1{MASK}", _KNOWN.sub(MASK, _ADDRESS.sub(rf"\1{MASK}@", text)))


def masked_arguments(arguments: Iterable[str]) -> list[str]:
    """Mask the secrets of a command line, by the names of its options and by what values look like.

    >>> masked_arguments(["--wandb.api_key=abc", "--hub-token", "x", "--max_new_tokens", "16"])
    ['--wandb.api_key=MASKED', '--hub-token', 'MASKED', '--max_new_tokens', '16']
    """
    masked: list[str] = []
    names_secret = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if names_secret and not argument.startswith("--"):
            masked.append(MASK)
        elif option.startswith("-") and equals and _is_secret(option):
            masked.append(f"{option}={MASK}")
        else:
            masked.append(masked_text(argument))
        key = argument.strip("{[('\", ")  # of a JSON or YAML argument that was split at its blanks
        names_secret = (argument.startswith("-") and not equals and _is_secret(argument)) or (
            key.endswith(":") and _is_secret(key.rstrip(":'\""))
        )
    return masked


def masked_command(command: str) -> str:
    """Mask the secrets of a command that was written down as one text."""
    try:
        return shlex.join(masked_arguments(shlex.split(command)))
    except ValueError:  # older files joined the arguments by blanks, quotes and all
        return " ".join(masked_arguments(command.split(" ")))


def masked_values(node: Any) -> Any:
    """Mask the secrets of nested data, by the names of their keys and by what texts look like."""
    if isinstance(node, Mapping):
        return {
            key: MASK if isinstance(value, str) and _is_secret(str(key)) else masked_values(value)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [masked_values(item) for item in node]
    return masked_text(node) if isinstance(node, str) else node


def _is_secret(name: str) -> bool:
    return bool(_NAME.search(name) or _CAMEL.search(name))
