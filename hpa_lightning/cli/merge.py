"""`hpa-lightning merge`: the weights of a safety-tuned and a task-tuned model in one, at a ratio or at many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Merge the weights of a task-tuned and a safety-tuned model, or adapters on one base, into one Hugging Face folder, one
tensor in memory at a time. With --front 0:1:0.1 every ratio is merged and evaluated by --evaluation, a configuration of
`fit` or `test`; OUTPUT then holds the front of safety and helpfulness as a page, a picture and JSON, and --budget picks
a ratio. Interrupt either at any moment; the same command continues."""

_METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def parser() -> CommandParser:
    """Options of the command; the defaults are those of `MergeSettings`."""
    parser = CommandParser("merge", _DESCRIPTION)
    add = parser.add_argument
    add("--task", type=Path, required=True, help="folder of the task-tuned model, or of a peft adapter on --base")
    add("--safety", type=Path, required=True, help="folder of the safety-tuned model, or of a peft adapter on --base")
    add("--base", type=Path, help="what both were tuned from: for adapters, and for all but linear and slerp")
    add("--output", type=Path, required=True, help="folder to be made")
    add("--method", choices=_METHODS, default="linear", help="default: %(default)s")
    add("--ratio", type=float, default=0.5, help="share of the safety-tuned model, 0 to 1 (%(default)s)")
    add("--weights", type=Optional[list[float]], help="of the task vectors, [task, safety] (1 - ratio, ratio)")  # noqa: UP045
    add("--scale", type=float, default=1.0, help="factor of the merged task vector, mergekit's lambda (%(default)s)")
    add("--density", type=float, default=0.5, help="share of a task vector that TIES and DARE keep (%(default)s)")
    add(
        "--convention",
        choices=("mergekit", "peft"),
        default="mergekit",
        help="whose ties, dare_linear and dare_ties are meant (%(default)s); docs/merge.md says how they differ",
    )
    add("--majority-sign", choices=("total", "frequency"), default="total", help="elected by TIES (%(default)s)")
    add("--normalize", type=Optional[bool], help="divide by the weights' sum or not (default: by convention)")  # noqa: UP045
    add("--rescale", choices=("density", "norm"), help="of what DARE keeps (default: by convention)")
    add("--seed", type=int, default=0, help="of DARE (%(default)s)")
    add("--keep", type=str, nargs="+", default=[], help="tensors that stay the task-tuned model's: names, patterns")
    add("--front", type=str, help="ratios to merge and evaluate, start:stop:step or a list: 0:1:0.1")
    add("--evaluation", type=Path, help="--front: YAML file of fit or test whose data and judges score every ratio")
    add("--budget", type=Optional[float], help="--front: highest mean attack success rate, a fraction; picks a ratio")  # noqa: UP045
    add("--bootstrap", type=int, default=10_000, help="--front: resamples of the test questions (%(default)s)")
    add("--keep-merged", action="store_true", help="--front: keep the weights of every ratio")
    add("--device", type=str, default="cpu", help="where tensors are merged (%(default)s)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Merge two checkpoints."""
    options = parser().parse_args(arguments)
    if options.front is not None:
        _front(options)
        return
    if options.evaluation is not None or options.budget is not None:
        raise UserError("--evaluation and --budget belong to --front; add it, such as --front 0:1:0.1")
    from hpa_lightning.merge import merge_checkpoints

    audit = merge_checkpoints(
        options.task,
        options.safety,
        options.output,
        options.base,
        settings=_settings(options),
        keep=options.keep,
        device=options.device,
        progress=True,
    )
    reported = f"{len(audit['tensors'])} tensors merged, {len(audit['unchanged'])} the same in all models"
    print(f"{options.output}: {reported}, {len(audit['kept'])} kept as they are in the task-tuned one.")


def _front(options: Any) -> None:
    if options.evaluation is None:
        raise UserError(
            "--front needs --evaluation, a YAML file of fit or test whose data and judges score every ratio"
        )
    if options.bootstrap < 100:
        raise UserError(f"--bootstrap is {options.bootstrap}; expected at least 100 resamples")
    from hpa_lightning.merge.ratio_front import merge_front, parse_ratios
    from hpa_lightning.report.front_page import front_table

    front = merge_front(
        options.task,
        options.safety,
        options.output,
        options.base,
        parse_ratios(options.front),
        options.evaluation,
        settings=_settings(options),
        keep=options.keep,
        budget=options.budget,
        resamples=options.bootstrap,
        keep_merged=options.keep_merged,
        device=options.device,
    )
    print(front_table(front).text())
    print(f"{front.verdict()}\n{options.output / 'front.html'}")


def _settings(options: Any) -> Any:
    from hpa_lightning.merge import MergeSettings

    weights = options.weights
    if weights is not None and len(weights) != 2:
        raise UserError(f"--weights has {len(weights)} numbers; expected two, [task, safety]")
    return MergeSettings(
        options.method,
        options.ratio,
        None if weights is None else (weights[0], weights[1]),
        options.scale,
        options.density,
        options.convention,
        options.majority_sign,
        options.normalize,
        options.rescale,
        options.seed,
    )
