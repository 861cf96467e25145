"""What users declare in YAML: read, filled in, made into objects, with errors that name the place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from hpa_lightning.allowed_imports import imports_limited, refusal
from hpa_lightning.values import cut, names, shown

#: Far above any real file.
MOST_NODES = 1_000_000
_NAMED_BY_THEMSELVES = ("callbacks", "logger", "profiler", "plugins", "strategy", "optimizer", "lr_scheduler")
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: named by ``where``: broken YAML, one with a key twice in one mapping, or one that holds itself or
            more than `MOST_NODES` values once its aliases are filled in (a few lines can stand for more than any
            memory holds).
    """
    try:
        content = yaml.safe_load(text)
        _check_size(content)
        check_distinct_keys(text)
        return content
    except RecursionError:
        raise ValueError(f"{where} is not YAML that can be read: it is nested too deeply.") from None
    except Exception as error:  # YAML's own, and those of the types that it makes: dates, numbers, keys
        raise ValueError(f"{where} is not valid YAML: {cut(error, 500)}") from error


def check_distinct_keys(text: str) -> None:
    """Check that no mapping of a YAML text has a key twice: the loader would keep the last value alone.

    Args:
        text: YAML that can be loaded.

    Raises:
        yaml.constructor.ConstructorError: one has, with the line.
    """
    waiting = [yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    visited: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            waiting += (key, value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {shown(key.value)} occurs twice in one mapping, and one of its values would be lost",
                    key.start_mark,
                )
            keys.add((key.tag, key.value))


def _check_size(content: Any) -> None:
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, dict | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = -1
            sizes[id(node)] = 1 + sum(map(size, node.values() if isinstance(node, dict) else node))
        if sizes[id(node)] < 0:
            raise ValueError("an alias is inside its own anchor")
        return sizes[id(node)]

    if size(content) > MOST_NODES:
        raise ValueError(f"with its aliases filled in it holds more than {MOST_NODES} values")


def check_classes(node: Any, packages: Collection[str], where: str) -> None:
    """Refuse classes of other packages, before any of them is imported: importing a module runs it.

    What is found here is what a file names openly; :mod:`hpa_lightning.allowed_imports` keeps the rest from being
    imported.

    Args:
        node: what was read; classes are named by ``class_path``, and in lists of callbacks and the like by themselves.
        packages: names of the packages whose classes may be named.
        where: named in messages.

    Raises:
        ValueError: a class of another package.
    """
    for name in _class_names(node):
        if "." in name and name.partition(".")[0] not in packages:
            raise ValueError(refusal(name, packages, where))


def _class_names(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _class_names(item)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            named = value if isinstance(value, list) else [value]
            if key == "class_path" or key in _NAMED_BY_THEMSELVES:
                yield from (name for name in named if isinstance(name, str))
            yield from _class_names(value)


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


def instantiate(
    parser: ArgumentParser, content: Mapping[str, Any], where: str, packages: Collection[str] | None = None
) -> Any:
    """Make the objects that ``content`` declares.

    Args:
        parser: made with ``exit_on_error=False``.
        content: what the parser's arguments get.
        where: named in messages.
        packages: names of the packages whose classes may be named; any when ``None``.

    Raises:
        ValueError: whatever the parser or a class has to say.
    """
    # The newer name; the older one is deprecated.
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        with nullcontext() if packages is None else imports_limited(packages, where):
            return make(parser.parse_object(dict(content)))
    except Exception as error:  # jsonargparse has an error class of its own, and calls the class
        raise ValueError(f"{where}: {cut(error, 1500)}") from error
