"""What users declare in YAML: read, filled in, made into objects, with errors that name the place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from hpa_lightning.values import cut, names, shown

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: named by ``where``: broken YAML.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{where} is no YAML that can be read: it is nested too deeply.") from None
    except Exception as error:  # YAML's own, and those of the types that it makes: dates, numbers, keys
        raise ValueError(f"{where} is no YAML: {cut(error, 500)}") from error


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """Replace ``${name}`` in every text: one that is nothing else becomes the value, with its type.

    Raises:
        ValueError: a name without a value.

    >>> fill({"rate": "${p}", "names": ["at ${p} %"]}, {"p": 5})
    {'rate': 5, 'names': ['at 5 %']}
    """
    if isinstance(node, Mapping):
        return {key: fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [fill(value, values) for value in node]
    if not isinstance(node, str):
        return node
    if unknown := [name for name in _PLACEHOLDER.findall(node) if name not in values]:
        raise ValueError(
            f"{shown(node)}: nothing fills ${{{unknown[0]}}}; the names known here are {names(sorted(values))}."
        )
    whole = _PLACEHOLDER.fullmatch(node)
    return values[whole[1]] if whole else _PLACEHOLDER.sub(lambda match: str(values[match[1]]), node)


def instantiate(parser: ArgumentParser, content: Mapping[str, Any], where: str) -> Any:
    """Make the objects that ``content`` declares.

    Args:
        parser: made with ``exit_on_error=False``.
        content: what the parser's arguments get.
        where: named in messages.

    Raises:
        ValueError: whatever the parser or a class has to say.
    """
    # The newer name; the older one is deprecated.
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        return make(parser.parse_object(dict(content)))
    except Exception as error:  # jsonargparse has an error class of its own, and calls the class
        raise ValueError(f"{where}: {cut(error, 1500)}") from error
