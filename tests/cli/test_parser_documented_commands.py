"""Every command in the documentation is one that its parser takes: its name, its options and their values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hpa_lightning.cli.app import COMMANDS, LIGHTNING, PROGRAM
from hpa_lightning.cli.completion import SHELLS, command_parsers

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.yaml")])
EXAMPLE = "examples/nano_sequential.yaml"
_BLOCK = re.compile(r"^( *)```[a-z]*\n(.*?)^\1```", re.M | re.S)
_INLINE = re.compile(rf"`({PROGRAM} [^`]+)`")
_ENDS = {";", "&&", "||", "|", "&", "(", ")", "done", ">", "<"}


def commands(text: str) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """The commands of this package in a page: whether it stands in a block, to be run as it is, and its words."""
    blocks = [match[2] for match in _BLOCK.finditer(text)]
    indented = re.findall(rf"^(?:    |# *)({PROGRAM} .*)$", text, re.M)
    lines = [(True, line) for line in "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()]
    inline = [(False, match[1].replace("\n", " ").replace(",", " ")) for match in _INLINE.finditer(text)]
    for block, line in [*lines, *inline]:
        if PROGRAM not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.wordchars += "$:[]{}*?,+@%'"
        try:
            words = list(lexer)
        except ValueError:  # no shell: YAML or Python that has the name in it
            continue
        for start, word in enumerate(words):
            if word == PROGRAM:
                end = next((at for at in range(start, len(words)) if words[at] in _ENDS), len(words))
                yield block, tuple(words[start + 1 : end])


FOUND = {
    (page.relative_to(ROOT).as_posix(), *found): None
    for page in PAGES
    for found in commands(page.read_text(encoding="utf-8"))
}


@cache
def parsers(command: str) -> dict[str, Any]:
    return command_parsers(command)


def test_the_commands_of_the_documentation_are_found() -> None:
    assert {words[0] for _, _, words in FOUND if words} >= set(COMMANDS) - {"validate", "predict"}
    assert len({words for _, _, words in FOUND}) > 100


@pytest.mark.parametrize("page", sorted({page for page, _, _ in FOUND}))
def test_a_page_s_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    faults = [
        f"{' '.join(words)}: {fault}" for at, block, words in FOUND if at == page for fault in faults_of(words, block)
    ]
    assert not faults, "\n".join(faults)


def faults_of(words: tuple[str, ...], block: bool) -> Iterator[str]:
    command, *rest = words
    if command.startswith("-"):
        if command not in ("--help", "-h", "--version") and not (command == "--print_completion" and rest[0] in SHELLS):
            yield "no such option"
        return
    if command == "COMMAND":
        return
    if command not in COMMANDS:
        yield "no such command"
        return
    known = parsers(command)
    second = rest[0] if rest and rest[0] in known else ""
    if second not in known:
        if rest:
            yield f"expected one of {', '.join(known)} behind it"
        return
    rest = rest[1:] if second else rest
    parser = known[second]
    first = next((action for action in parser._actions if not action.option_strings), None)
    if first is not None and first.choices and rest and not rest[0].startswith("-") and rest[0] not in first.choices:
        yield f"{rest[0]} is none of {', '.join(first.choices)}"
    options = [word.partition("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)]
    for option in options:
        if not takes(parser, option, command):
            yield f"no option {option}"
    left_open = any(re.fullmatch(r"\.\.\.|…|\[.*|[A-Z_]+\.\.\.", word) for word in rest)
    files = [at + 1 for at, word in enumerate(rest) if word in ("--config", "-c") and not Path(rest[at + 1]).exists()]
    if not block or left_open or "--help" in options or (files and command not in LIGHTNING):
        return
    try:  # with an example in the place of a configuration that the reader has
        parser.parse_args([EXAMPLE if at in files else word for at, word in enumerate(rest)])
    except SystemExit as error:
        yield f"{error}"


def takes(parser: Any, option: str, command: str) -> bool:
    """Whether a parser has an option; of Lightning's commands, one inside a class or a callback."""
    if option in parser._option_string_actions or option in ("--help", "-h"):
        return True
    return command in LIGHTNING and any(
        option.startswith((f"{known}.", f"{known}+")) for known in parser._option_string_actions
    )


def test_mistakes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = """
```bash
hpa-lightning merge --task a --safety b --ration 0.3 --output c   # a comment
hpa-lightning merge --task a --safety b \\
  --ratio much --output c && hpa-lightning tune
hpa-lightning fit --config fit.yaml --trainer.max_epoch 1
```
`hpa-lightning judge --jugde` and `hpa-lightning study runs`.
"""
    faults = [" | ".join(faults_of(words, block)) for block, words in commands(page)]
    assert len(faults) == 6 and all(faults)
    assert faults[0].startswith("no option --ration") and "much" in faults[1] and faults[2] == "no such command"
    assert "max_epoch" in faults[3] and faults[4] == "no option --jugde" and "run, status" in faults[5]
