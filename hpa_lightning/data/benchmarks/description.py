"""One YAML file that says where the tasks of a whole benchmark lie in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from hpa_lightning.data.tasks import Task

#: Descriptions that come with the package.
BENCHMARKS = ("ucit", "mllm-dcl", "coin", "hpa")
_KEYS = {"title", "source", "notes", "tasks"}
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def read_benchmark(benchmark: str, folder: str | Path) -> list[Task]:
    """Return the tasks of a benchmark, in the order of its description; no data file is read.

    A description has ``tasks``, a list of what :class:`Task` takes (a :class:`RecordSet` with ``class_path`` and
    ``init_args``), in whose texts ``${folder}`` stands for the benchmark's folder; and for readers ``title``,
    ``source`` and ``notes``.

    Args:
        benchmark: one of :data:`BENCHMARKS`, or the path of a description of your own.
        folder: the benchmark's folder.

    Raises:
        ValueError: no such benchmark, description or folder; a description that is broken, with what is wrong.

    >>> [task.name for task in read_benchmark("mllm-dcl", ".")]
    ['RS', 'Med', 'AD', 'Sci', 'Fin']
    """
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; expected the folder of the benchmark {benchmark!r}.")
    try:
        content = yaml.safe_load(_text(benchmark))
    except yaml.YAMLError as error:
        raise ValueError(f"the description {benchmark!r} is no YAML: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("tasks"), list) or set(content) - _KEYS:
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"the description {benchmark!r} has {found}; expected `tasks`, a list, and {sorted(_KEYS)}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("tasks", type=list[Task])
    # The newer name; the older one is deprecated.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    tasks = _filled(content["tasks"], {"folder": str(folder)}, benchmark)
    try:
        found = instantiate(parser.parse_object({"tasks": tasks})).tasks
    except Exception as error:  # jsonargparse has an error class of its own, and calls the class
        raise ValueError(f"the description {benchmark!r}: {error}") from error
    return list(found)


def _text(benchmark: str) -> str:
    if benchmark in BENCHMARKS:
        return (files(__package__) / f"{benchmark}.yaml").read_text(encoding="utf-8")
    if not Path(benchmark).is_file():
        raise ValueError(
            f"there is no benchmark {benchmark!r}; expected one of {', '.join(BENCHMARKS)}, or the path of a "
            "description (YAML)."
        )
    return Path(benchmark).read_text(encoding="utf-8")


def _filled(value: Any, values: Mapping[str, str], benchmark: str) -> Any:
    """The value with its placeholders filled in, in dictionaries and lists too."""
    if isinstance(value, Mapping):
        return {key: _filled(one, values, benchmark) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, values, benchmark) for one in value]
    if not isinstance(value, str):
        return value
    unknown = sorted(set(_PLACEHOLDER.findall(value)) - set(values))
    if unknown:
        raise ValueError(
            f"the description {benchmark!r} has ${{{unknown[0]}}} in {value!r}; only ${{folder}} is known."
        )
    return _PLACEHOLDER.sub(lambda match: values[match[1]], value)
