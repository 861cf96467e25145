"""Shell completion: a script for each shell that holds all commands and options, so that a TAB starts no Python."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hpa_lightning.cli.app import COMMANDS, LIGHTNING, PROGRAM
from hpa_lightning.cli.errors import UserError
from hpa_lightning.values import nearest

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# Completion of {program}. Written by `{program} --print_completion`; write it again after an update.
_{name}() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}} $before" in
{choices}  esac
  if [ -z "$words" ]; then
    case "${{COMP_WORDS[1]}}" in
{options}    esac
    [[ "$word" == -* ]] || words=""
  fi
  [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _{name} {program}
"""


def print_completion(arguments: Sequence[str]) -> None:
    """Print the script of a shell.

    Raises:
        UserError: no such shell.
    """
    shell = arguments[0] if len(arguments) == 1 else ""
    if shell not in SHELLS:
        given = " ".join(arguments) or "nothing"
        raise UserError(f"--print_completion got {given}; expected one of {', '.join(SHELLS)}{nearest(shell, SHELLS)}")
    parsers = {command: command_parsers(command) for command in COMMANDS}
    if shell == "fish":
        print(_fish(parsers))
    else:
        print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + _bash(parsers), end="")


def command_parsers(command: str) -> dict[str, Any]:
    """The parsers of a command, by its second word where it has one; those of Lightning's commands import PyTorch."""
    module = import_module(f"hpa_lightning.cli.{COMMANDS[command][0]}")
    if command in LIGHTNING:
        return {"": module.parser(command)}
    return {word: parser() for word, parser in getattr(module, "PARSERS", {"": module.parser}).items()}


def _actions(parsers: dict[str, Any]) -> list[Any]:
    """What all parsers of a command take, each option once."""
    found = [action for parser in parsers.values() for action in parser._actions if action.help != "==SUPPRESS=="]
    return list({tuple(action.option_strings) or id(action): action for action in found}.values())


def _first_words(parsers: dict[str, Any]) -> list[str]:
    """What may stand behind the command: its second words, else the choices of its first argument."""
    if "" not in parsers:
        return [" ".join(parsers)]
    return [_choices(action) for action in _actions(parsers) if not action.option_strings and action.choices]


def _choices(action: Any) -> str:
    return " ".join(map(str, action.choices or ()))


def _bash(parsers: dict[str, dict[str, Any]]) -> str:
    choices, options = "", ""
    for command, parser in parsers.items():
        found = [option for action in _actions(parser) for option in action.option_strings]
        options += f'      {command}) words="{" ".join(found)}" ;;\n'
        for action in _actions(parser):
            if action.choices and action.option_strings:
                on = "|".join(f'"{command} {option}"' for option in action.option_strings)
                choices += f'    {on}) words="{_choices(action)}" ;;\n'
        for words in _first_words(parser):
            choices += f'    "{command} {command}") words="{words}" ;;\n'
    name = PROGRAM.replace("-", "_")
    commands = " ".join([*COMMANDS, "--help", "--version", "--print_completion"])
    shells = f'    "--print_completion --print_completion") words="{" ".join(SHELLS)}" ;;\n'
    return _BASH.format(program=PROGRAM, name=name, commands=commands, choices=choices + shells, options=options)


def _fish(parsers: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"# Completion of {PROGRAM}. Written by `{PROGRAM} --print_completion fish`; write it again after an update."
    ]
    for command, (_, text) in COMMANDS.items():
        lines.append(f"complete -c {PROGRAM} -f -n __fish_use_subcommand -a {command} -d {_quoted(text)}")
    for command, parser in parsers.items():
        on = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command}'"
        for action in _actions(parser):
            words = f" -x -a {_quoted(_choices(action))}" if action.choices else ""
            for option in action.option_strings:
                form = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                lines.append(f"{on} {form}{words if words else '' if action.nargs == 0 else ' -r'}")
        lines += [f"{on} -a {_quoted(words)}" for words in _first_words(parser)]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
