"""`hpa-lightning fuse`: post-training HPA, or regression fusion, on two checkpoints that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Post-training HPA, or regression fusion, for models that were tuned elsewhere: fuses the model before and after tuning
into one Hugging Face folder. One decoder block at a time is in memory. Interrupt it at any moment; the same command
continues."""

_OF_HPA = (
    *("p_min", "p_max", "alpha_min", "alpha_max", "focus_ratio"),
    *("saliency", "units", "no_orthogonal", "diagonals", "save_diagonals"),
)


def parser() -> CommandParser:
    """Options of the command; the defaults are those of `RetentionSettings` and `CalibrationSettings`."""
    parser = CommandParser("fuse", _DESCRIPTION)
    add = parser.add_argument
    add("--before", type=Path, required=True, help="folder of the aligned model (safetensors)")
    add("--after", type=Path, required=True, help="folder of the tuned model, or of a peft LoRA adapter on --before")
    add("--output", type=Path, required=True, help="folder to be made")
    add("--safety-data", type=Path, help="JSON or JSON lines: harmful inputs answered with refusals")
    add("--task-data", type=Path, help="JSON or JSON lines: samples of the task")
    add("--image-folder", type=Path, help="where relative image paths start from (default: the data file's folder)")
    add("--method", choices=("hpa", "regression"), default="hpa", help="default: %(default)s")
    add("--safety-samples", type=int, default=8, help="default: %(default)s")
    add("--task-samples", type=int, default=128, help="default: %(default)s")
    add("--batch-size", type=int, default=8, help="samples in a forward pass (default: %(default)s)")
    add("--damping", type=float, default=0.01, help="damping of the Hessians (default: %(default)s)")
    add(
        "--safety-positions",
        choices=("all", "answers"),
        default="all",
        help="of the safety data, whose inputs count: all but padding, or those that refusals are told from (all)",
    )
    add("--safety-weight", type=Optional[float], help="regression: weight of the safety inputs (default: 1)")  # noqa: UP045
    add("--memory-weight", type=Optional[float], help="regression: weight of each earlier task (default: 1)")  # noqa: UP045
    add("--rank", type=Optional[int], help="regression: rows of a sketch of a layer's inputs (default: 384)")  # noqa: UP045
    add("--earlier-tasks", type=Path, help="regression: a file of --save-memory: tasks that --before has learnt")
    add("--save-memory", type=Path, help="regression: remember those and this task in this file (safetensors)")
    add("--task-name", type=str, help="regression: the task's name there (default: that of the folder --after)")
    add("--p-min", type=float, default=5.0, help="retained in the last block, in percent (%(default)s)")
    add("--p-max", type=float, default=15.0, help="towards the first block, in percent (%(default)s)")
    add("--alpha-min", type=float, default=0.4, help="smallest weight of the task focus (%(default)s)")
    add("--alpha-max", type=float, default=0.8, help="largest weight of the task focus (%(default)s)")
    add("--focus-ratio", type=float, default=2.0, help="focused to retained columns (%(default)s)")
    add("--saliency", choices=("divide", "multiply"), default="divide", help="with diag(H^-1) (default: %(default)s)")
    add(
        "--units",
        choices=("columns", "rows"),
        default="columns",
        help="of a weight that are retained (default: %(default)s)",
    )
    add("--no-orthogonal", action="store_true", help="keep the update's component along the old weight")
    add(
        "--target-modules",
        type=str,
        nargs="+",
        help="last names of the linear layers to fuse (default: all in the blocks)",
    )
    add("--chat-template", type=str, help="instead of the processor's; 'plain' for a model that has seen none")
    add("--max-length", type=Optional[int], help="longest calibration sequence in tokens, images included")  # noqa: UP045
    add("--device", type=str, default="cpu", help="where the blocks are computed (default: %(default)s)")
    add("--diagonals", type=Path, help="a file of --save-diagonals: what it holds is not calibrated again")
    add("--save-diagonals", type=Path, help="write the calibration's result to this file (safetensors)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Fuse two checkpoints."""
    command = parser()
    options = command.parse_args(arguments)
    from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
    from hpa_lightning.fuse import fuse_checkpoints

    hpa = options.method == "hpa"
    unused = [f"--{name.replace('_', '-')}" for name in _OF_HPA if options[name] != command.get_default(name)]
    if unused and not hpa:
        raise ValueError(f"{', '.join(unused)}: of --method hpa; regression fusion retains no columns.")
    audit = fuse_checkpoints(
        options.before,
        options.after,
        options.output,
        options.safety_data,
        options.task_data,
        image_folder=options.image_folder,
        retention=RetentionSettings(
            options.p_min,
            options.p_max,
            options.alpha_min,
            options.alpha_max,
            options.focus_ratio,
            saliency=options.saliency,
            units=options.units,
        )
        if hpa
        else None,
        calibration=CalibrationSettings(
            options.safety_samples,
            options.task_samples,
            options.batch_size,
            options.damping,
            safety_positions=options.safety_positions,
        ),
        orthogonal=not options.no_orthogonal,
        target_modules=options.target_modules,
        device=options.device,
        chat_template=options.chat_template,
        max_length=options.max_length,
        diagonals=options.diagonals,
        save_diagonals=options.save_diagonals,
        method=options.method,
        safety_weight=options.safety_weight,
        memory_weight=options.memory_weight,
        rank=options.rank,
        earlier_tasks=options.earlier_tasks,
        save_memory=options.save_memory,
        task_name=options.task_name,
        progress=True,
    )
    layers = audit["layers"]
    refused, samples = audit["safety_answers_refused"], audit["samples"].get("safety", 0)
    if refused is not None and 2 * refused < samples:
        print(f"Of {samples} safety answers only {refused} read like refusals; check --safety-data.")
    fused = f"{options.output}: {len(layers)} linear layers fused"
    if hpa:
        columns, kept = (sum(entry[key] for entry in layers) for key in ("columns", "retained"))
        print(f"{fused}, {kept} of {columns} {options.units} retained.")
    else:
        left = sorted(entry["safety_action_left"] for entry in layers)[len(layers) // 2]
        print(f"{fused}; of what the update did to the safety inputs, {100 * left:.0f} % are left in the median layer.")
