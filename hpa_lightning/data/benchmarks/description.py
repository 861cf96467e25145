"""One YAML file that says where the tasks of a whole benchmark are in its folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from hpa_lightning.data.images import is_file
from hpa_lightning.data.tasks import Task
from hpa_lightning.declarations import check_classes, fill, instantiate, load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.values import names, shown

#: Descriptions that come with the package.
BENCHMARKS = ("ucit", "mllm-dcl", "coin", "hpa")
_KEYS = {"title", "source", "notes", "tasks"}
_PART = {"benchmark", "folder", "task"}


def read_benchmark(benchmark: str, folder: str | Path, imports: Sequence[str] = ()) -> list[Task]:
    """Return the tasks of a benchmark, in the order of its description; no data file is read.

    A description has ``tasks``, a list of what :class:`Task` takes (a :class:`RecordSet` with ``class_path`` and
    ``init_args``), in whose texts ``${folder}`` stands for the benchmark's folder. An entry with ``benchmark``,
    ``folder`` and ``task`` is that task of another benchmark. For readers there are ``title``, ``source`` and
    ``notes``.

    Args:
        benchmark: one of :data:`BENCHMARKS`, or the path of a description of your own.
        folder: the benchmark's folder.
        imports: packages beside this one whose classes the description may name; importing one runs its code.

    Raises:
        ValueError: no such benchmark, description or folder; a description that is broken, with what is wrong; a class
            of another package, which is not imported.

    >>> [task.name for task in read_benchmark("mllm-dcl", ".")]
    ['RS', 'Med', 'AD', 'Sci', 'Fin']
    """
    return _read(benchmark, folder, (), {"hpa_lightning", *imports})


def _read(benchmark: str, folder: str | Path, reading: tuple[str, ...], packages: Collection[str]) -> list[Task]:
    """The tasks of a benchmark; ``reading``: the descriptions that take tasks of it."""
    if not os.path.isdir(folder):
        raise ValueError(
            f"there is no folder {shown(str(folder))}; expected the folder of the benchmark {benchmark!r}."
        )
    where = f"the description {benchmark!r}"
    content = load_yaml(_text(benchmark), where)
    if not isinstance(content, Mapping) or not isinstance(content.get("tasks"), list) or set(content) - _KEYS:
        found = names(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{where} has {found}; expected `tasks`, a list, and {sorted(_KEYS)}.")
    try:
        entries = fill(content["tasks"], {"folder": str(folder)})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return [_task(entry, where, (*reading, benchmark), packages) for entry in entries]


def _task(entry: Any, where: str, reading: tuple[str, ...], packages: Collection[str]) -> Task:
    if isinstance(entry, Mapping) and set(entry) == _PART:
        if not all(isinstance(value, str) for value in entry.values()):
            raise ValueError(f"{where}: {shown(dict(entry))}; expected texts.")
        if entry["benchmark"] in reading:
            raise ValueError(f"{where} takes a task of {shown(entry['benchmark'])}, which takes one of it in turn.")
        tasks = {task.name: task for task in _read(entry["benchmark"], entry["folder"], reading, packages)}
        if entry["task"] not in tasks:
            raise ValueError(
                f"{where}: {entry['benchmark']!r} has no task {shown(entry['task'])}; it has {list(tasks)}."
            )
        return tasks[entry["task"]]
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} has the task {shown(entry)}; expected a mapping.")
    check_classes(entry, packages, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("task", type=Task)
    found: Task = instantiate(parser, {"task": entry}, where, packages).task
    if found.test is None:
        raise ValueError(f"{where}: the task {found.name!r} has no `test`; a benchmark scores every task.")
    return found


def _text(benchmark: str) -> str:
    if benchmark in BENCHMARKS:
        return (files(__package__) / f"{benchmark}.yaml").read_text(encoding="utf-8")
    if not is_file(benchmark):
        raise ValueError(
            f"there is no benchmark {shown(benchmark)}; expected one of {', '.join(BENCHMARKS)}, or the path of a "
            "description (YAML)."
        )
    return read_text(benchmark)
