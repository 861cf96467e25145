"""Parsers of the commands: options from the command line and from YAML, errors in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isclass, signature
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader

from hpa_lightning.cli.errors import UserError, on_one_line
from hpa_lightning.declarations import check_distinct_keys
from hpa_lightning.values import nearest

_HOW = "YAML file of options, as --print_config prints it"

# What jsonargparse says; the first that is found in a message is what the user did.
_UNKNOWN_KEY = re.compile(r"(?:[Oo]ption|Key) '([^']+)' is not (?:accepted|expected)|does not accept option '([^']+)'")
_UNKNOWN_ARGUMENT = re.compile(r"unrecognized arguments: (-\S+)")
_UNKNOWN_CLASS = re.compile(
    r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'"
    r"|No module named '(?P<missing>[\w.]+)'"
    r"|Expected a dot import path string: (?P<bare>\w+)"
)
_INVALID_CHOICE = re.compile(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)")
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_MOST_NAMES = 20
_UNINFORMATIVE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Not a valid subclass"
    r"|Subclass types expect|a class path|a dict with"
)
#: Where a class without its package, or with a wrong one, is looked for.
_PACKAGES = (
    "hpa_lightning.callbacks",
    "hpa_lightning.callbacks.baselines",
    "hpa_lightning.data",
    "hpa_lightning.data.benchmarks",
    "hpa_lightning.data.nano",
    "hpa_lightning.modules",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "torch.optim",
    "torch.optim.lr_scheduler",
)


_load_yaml = get_loader("yaml")


def _load_distinct(text: str) -> Any:
    """YAML as jsonargparse reads it, without a key that occurs twice."""
    content = _load_yaml(text)
    check_distinct_keys(text)
    return content


set_loader("yaml", _load_distinct, exceptions=(yaml.YAMLError,))


class OneLineErrors:
    """A parser, mixed in, that reports an error in one line, with the nearest key or class."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser: Any = self
        if not parser.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        raise UserError(explain(message, getattr(ex, "subcommand_parser", None) or parser)) from ex


class CommandParser(OneLineErrors, ArgumentParser):
    """The parser of one command.

    Args:
        command: its name.
        description: what it does.
        config: name of the option that reads a YAML file of options.
    """

    def __init__(self, command: str, description: str, config: str = "--config") -> None:
        super().__init__(
            prog=f"hpa-lightning {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            print_config="--print_config",
        )
        self.add_argument(config, action=ActionConfigFile, metavar="FILE", help=_HOW)
        self._option_string_actions["--print_config"].help = "print all options as YAML and exit"


def explain(message: str, parser: Any) -> str:
    """Put what jsonargparse says into one line.

    Args:
        message: its message, several lines where a class was asked for.
        parser: that refused; its options are the names that could have been meant.
    """
    if found := _UNKNOWN_ARGUMENT.search(message):
        name = found[1].lstrip("-").partition("=")[0]
        return f"no option {found[1]}{nearest_option(name, parser)}"
    if found := _INVALID_CHOICE.search(message):
        choices = re.findall(r"[^\s,']+", found[3])
        return f"{found[1]} is {found[2]!r}; expected one of {', '.join(choices)}{nearest(found[2], choices)}"
    trail: list[tuple[int, str, str]] = []  # indentation, "key" or "class", name: what encloses the line
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip(" -"))
        trail = [step for step in trail if step[0] < indent]
        if found := _UNKNOWN_KEY.search(line):
            return _no_key(found[1] or found[2], trail, parser)
        if found := _UNKNOWN_CLASS.search(line):
            return _no_class(found, trail)
        for pattern, kind in ((_KEY, "key"), (_CLASS, "class")):
            trail += [(indent, kind, match[1]) for match in pattern.finditer(line)]
    return what_was_said(message)


def what_was_said(message: str) -> str:
    """Put a message of jsonargparse into one line, without the types it has tried and the values it was given.

    A message of which nothing else would be left is kept whole.
    """
    lines = [line.lstrip(" -") for line in message.splitlines() if not _UNINFORMATIVE.search(line)]
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", on_one_line(" ".join(lines) or message))
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    return re.sub(r"\b(?:fit|validate|test|predict)\.(?=model|data|trainer)", "", text)


def nearest_option(name: str, parser: Any) -> str:
    """Like :func:`nearest`, among the options of a parser."""
    options = (text.lstrip("-") for action in parser._actions for text in action.option_strings)
    return re.sub(r"mean '(.*)'", r"mean --\1", nearest(name, options))


def _no_key(key: str, trail: list[tuple[int, str, str]], parser: Any) -> str:
    place = ".".join(name for _, kind, name in trail if kind == "key")
    owner = next((name for _, kind, name in reversed(trail) if kind == "class"), None)
    named = f"{place}: " if place else ""
    if owner is not None:
        known = _settings_of(owner)
        meant = nearest(key, known) or f"; it has {', '.join(sorted(known)[:_MOST_NAMES])}" * bool(known)
        return f"{named}{owner} has no setting {key!r}{meant}"
    known = {action.dest for action in parser._actions} - {"help", "print_config"}
    return f"{named}no setting {key!r}{nearest(key, known)}"


def _no_class(found: re.Match[str], trail: list[tuple[int, str, str]]) -> str:
    asked = next((name for _, kind, name in reversed(trail) if kind == "class"), found["bare"] or found["missing"])
    place = ".".join(name for _, kind, name in trail if kind == "key")
    short = (found["bare"] or asked).rpartition(".")[2]
    paths = {path.rpartition(".")[2]: path for path in _class_paths(found["module"])}
    meant = re.sub(r"'(\w+)'", lambda match: repr(paths[match[1]]), nearest(short, paths))
    why = f": {found[0]}" if found["missing"] else ""
    return f"{place + ': ' if place else ''}no class {asked!r}{why}{meant}"


def _settings_of(path: str) -> set[str]:
    """Names of all arguments of a class: those of its parents too, as long as each passes on what it does not know."""
    module, _, name = path.rpartition(".")
    named: Any = getattr(import_module(module), name)
    known: set[str] = set()
    for item in named.__mro__ if isclass(named) else [named]:
        if isclass(item) and "__init__" not in vars(item):
            continue
        call: Callable[..., Any] = item.__init__ if isclass(item) else item
        try:
            parameters = signature(call).parameters.values()
        except (TypeError, ValueError):  # of a class that is written in C
            break
        known |= {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return known - {"self"}


def _class_paths(module: str | None) -> Iterator[str]:
    for package in (*_PACKAGES, *([module] if module else [])):
        content = import_module(package)
        for name in getattr(content, "__all__", dir(content)):
            if isclass(getattr(content, name, None)) and not name.startswith("_"):
                yield f"{package}.{name}"
