"""`hpa-lightning demo`: the main job on the embedded benchmark, or on `smol`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser
from hpa_lightning.declarations import load_yaml
from hpa_lightning.parsing import read_text
from hpa_lightning.values import nearest

_STUDY = Path(__file__).parents[1] / "study" / "demo_study.yaml"

_DESCRIPTION = """\
Run the main job and print one table: several methods side by side over a stream of tasks, scored after each. On `nano`,
the embedded benchmark, it takes minutes anywhere. On `smol`, a pretrained language model with real pictures
(`hpa-lightning benchmark build smol`), sequential tuning runs beside HUSH on three tasks; the benchmark is built first
where it is not there."""


def parser() -> CommandParser:
    """Options of the command; the methods are those of its study file."""
    known, default = _nano()
    parser = CommandParser("demo", _DESCRIPTION)
    add = parser.add_argument
    add("--benchmark", choices=("nano", "smol"), default="nano", help="nano is embedded (default: %(default)s)")
    add("--output", type=Optional[Path], help="result folder (default: runs/demo, runs/demo-smol)")  # noqa: UP045
    add("--seeds", type=int, nargs="+", help="seeds of the runs (default: 101)")
    text = f"of {', '.join(known)} (default: {' '.join(default)}); of studies/smol.yaml with smol"
    add("--methods", type=str, nargs="+", metavar="METHOD", help=text)
    add("--jobs", type=Optional[int], help="runs at a time (default: one for each core)")  # noqa: UP045
    add("--folder", type=Path, default=Path("smol"), help="smol: of the built benchmark (default: %(default)s)")
    add("--xstest", type=str, help="smol: for its build, XSTest's file, or the word download")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run the demo."""
    options = parser().parse_args(arguments)
    if options.benchmark == "smol":
        from hpa_lightning.study.smol_demo import run_smol_demo

        output = options.output or Path("runs/demo-smol")
        run_smol_demo(output, options.folder, options.seeds, options.methods, options.jobs, options.xstest)
        return
    known, default = _nano()
    for name in options.methods or ():
        if name not in known:
            expected = f"{nearest(name, known)}; expected one of {', '.join(known)}"
            raise UserError(f"--methods is {name!r}{expected}")
    if options.xstest is not None:
        raise UserError("--xstest is for --benchmark smol; nano has requests of its own")
    from hpa_lightning.study.demo_study import run_demo

    run_demo(options.output or Path("runs/demo"), options.seeds or [101], options.methods or default, options.jobs)


def _nano() -> tuple[list[str], list[str]]:
    """The methods of the demo on `nano`, and those that run unless others are asked for."""
    study = load_yaml(read_text(_STUDY), str(_STUDY))
    return list(study["methods"]), list(study["groups"]["demo"]["methods"])
