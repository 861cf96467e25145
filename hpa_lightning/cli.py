"""The command `hpa-lightning`: Lightning's `fit`, `validate`, `test`, `predict`, and the package's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: hpa-lightning COMMAND [options]

Lightning commands (`hpa-lightning COMMAND --help` lists every option; all can be set from YAML):
  fit        tune on the task stream:  hpa-lightning fit --config examples/nano_hpa.yaml
  validate   score the tasks of the stream
  test       score all tasks, safety sets and over-refusal
  predict    write the answers

Other commands:
  demo       sequential tuning against both modes of HPA on the embedded benchmark, one table
  data       `data check`: everything that can be wrong with the data of a configuration or of a benchmark's folder
  fuse       post-training HPA on two checkpoints that were trained elsewhere
  study      a grid of runs from one YAML file: run, status, report, archive
  judge      judge the answers of an earlier run anew, and compare judges
  answers    one HTML page of a run's answers before and after, with filters
  report     tables, plots and one HTML page from the result folders of earlier runs
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `hpa-lightning`; ``arguments`` defaults to the command line's."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return
    command, rest = arguments[0], arguments[1:]
    if command in {"fit", "validate", "test", "predict"}:
        _lightning(arguments)
    elif command == "demo":
        _demo(rest)
    elif command == "report":
        _report(rest)
    elif command == "fuse":
        from hpa_lightning.fuse.command import fuse_command

        fuse_command(rest)
    elif command == "answers":
        from hpa_lightning.report.answers import answers_command

        answers_command(rest)
    elif command == "data":
        if rest[:1] != ["check"]:
            raise SystemExit("hpa-lightning data: expected `hpa-lightning data check`; --help lists its options")
        from hpa_lightning.data.checking import check_command

        check_command(rest[1:])
    elif command == "judge":
        from hpa_lightning.judging import judge_command

        judge_command(rest)
    elif command == "study":
        from hpa_lightning.study.command import study_command

        study_command(rest)
    elif command == "--version":
        from importlib.metadata import version

        print(version("hpa-lightning"))
    else:
        raise SystemExit(f"hpa-lightning: no command {command!r}\n\n{USAGE}")


def _lightning(arguments: list[str]) -> None:
    from hpa_lightning.data import CVITDataModule
    from hpa_lightning.lightning_commands import SaveRunConfig, TuningCLI
    from hpa_lightning.modules import MLLMModule

    cli = TuningCLI(
        MLLMModule,
        CVITDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # Injected optimizer factories make a fresh optimizer for every task; the automatic one would be reused.
        auto_configure_optimizers=False,
        save_config_callback=SaveRunConfig,
        seed_everything_default=0,
        args=None if arguments == sys.argv[1:] else arguments,
    )
    if arguments[0] == "fit":
        from hpa_lightning.callbacks.ending import unfinished

        if reason := unfinished(cli.trainer):
            raise SystemExit(f"hpa-lightning fit: {reason}")


def _demo(arguments: list[str]) -> None:
    from hpa_lightning.declarations import load_yaml
    from hpa_lightning.demo import STUDY, run_demo
    from hpa_lightning.parsing import read_text
    from hpa_lightning.study.runner import Interrupted

    study = load_yaml(read_text(STUDY), str(STUDY))
    parser = argparse.ArgumentParser(prog="hpa-lightning demo", description="Run the main job; print one table.")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="result folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101], help="seeds of the runs (default: %(default)s)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(study["methods"]),
        default=study["groups"]["demo"]["methods"],
        help="what to run: %(choices)s (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each core)")
    options = parser.parse_args(arguments)
    try:
        run_demo(options.output, options.seeds, options.methods, options.jobs)
    except (ValueError, OSError) as error:
        raise SystemExit(f"hpa-lightning demo: {error}") from error
    except Interrupted:
        raise SystemExit(130) from None


def _report(arguments: list[str]) -> None:
    from hpa_lightning.report import write_report

    parser = argparse.ArgumentParser(prog="hpa-lightning report", description="Tables, plots and one HTML page.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders that hold a results.jsonl")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--unfinished", action="store_true", help="take runs that are not finished, as far as they are")
    options = parser.parse_args(arguments)
    try:
        written = write_report(options.runs, options.output, unfinished=options.unfinished)
    except (ValueError, OSError) as error:
        raise SystemExit(f"hpa-lightning report: {error}") from error
    for what, path in written.items():
        print(f"{what}: {path}")


if __name__ == "__main__":
    main()
