"""`hpa-lightning fuse`: post-training HPA on two checkpoints that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Post-training HPA for models that were tuned elsewhere: fuses the model before and after tuning into one Hugging Face
folder. One decoder block at a time is in memory. Interrupt it at any moment; the same command goes on."""


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
    add("--safety-samples", type=int, default=8, help="default: %(default)s")
    add("--task-samples", type=int, default=128, help="default: %(default)s")
    add("--batch-size", type=int, default=8, help="samples in a forward (default: %(default)s)")
    add("--damping", type=float, default=0.01, help="of the Hessians (default: %(default)s)")
    add("--p-min", type=float, default=5.0, help="retained in the last block, in percent (%(default)s)")
    add("--p-max", type=float, default=15.0, help="towards the first block, in percent (%(default)s)")
    add("--alpha-min", type=float, default=0.4, help="smallest weight of the task focus (%(default)s)")
    add("--alpha-max", type=float, default=0.8, help="largest (%(default)s)")
    add("--focus-ratio", type=float, default=2.0, help="focused to retained columns (%(default)s)")
    add("--saliency", choices=("divide", "multiply"), default="divide", help="with diag(H^-1) (default: %(default)s)")
    add(
        "--units",
        choices=("columns", "rows"),
        default="columns",
        help="of a weight that are retained (default: %(default)s)",
    )
    add("--no-orthogonal", action="store_true", help="leave the update's component along the old weight in")
    add(
        "--target-modules",
        type=str,
        nargs="+",
        help="last names of the linear layers to fuse (default: all in the blocks)",
    )
    add("--chat-template", type=str, help="in place of the processor's; 'plain' for a model that has seen none")
    add("--max-length", type=Optional[int], help="longest calibration sequence in tokens, images included")  # noqa: UP045
    add("--device", type=str, default="cpu", help="where the blocks are computed (default: %(default)s)")
    add("--diagonals", type=Path, help="a file of --save-diagonals: what it holds is not calibrated again")
    add("--save-diagonals", type=Path, help="write the calibration's result to this file (safetensors)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Fuse two checkpoints."""
    options = parser().parse_args(arguments)
    from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
    from hpa_lightning.fuse import fuse_checkpoints

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
        ),
        calibration=CalibrationSettings(
            options.safety_samples, options.task_samples, options.batch_size, options.damping
        ),
        orthogonal=not options.no_orthogonal,
        target_modules=options.target_modules,
        device=options.device,
        chat_template=options.chat_template,
        max_length=options.max_length,
        diagonals=options.diagonals,
        save_diagonals=options.save_diagonals,
        progress=True,
    )
    layers = audit["layers"]
    columns, kept = (sum(entry[key] for entry in layers) for key in ("columns", "retained"))
    refused, samples = audit["safety_answers_refused"], audit["samples"].get("safety", 0)
    if refused is not None and 2 * refused < samples:
        print(f"Of {samples} safety answers only {refused} read like refusals; check --safety-data.")
    print(f"{options.output}: {len(layers)} linear layers fused, {kept} of {columns} {options.units} retained.")
