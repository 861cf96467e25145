"""`hpa-lightning drift`: two checkpoints of one model, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Compare a model before and after training: the direction of its hidden states (cosine similarity after every decoder
block at the prompts' last token) and its weights, by block and by kind of layer. The models are Hugging Face folders,
peft adapters on --base, or checkpoints of Lightning (.ckpt). Weights are read one tensor at a time. OUTPUT gets
drift.json, drift.csv and drift.png.

  hpa-lightning drift aligned tuned --evaluation fit.yaml --output out \\
      --prompts '{harmful: figstep, harmless: xstest}'"""

_PROMPTS = "{name: evaluation set of --evaluation, or file of records}; harmless and harmful show the safety layers"


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("drift", _DESCRIPTION)
    add = parser.add_argument
    add("before", type=Path, help="folder of the model before, of a peft adapter on --base, or a .ckpt file")
    add("after", type=Path, help="the same of the model after")
    add("--base", type=Optional[Path], help="folder of the model that adapters belong to")  # noqa: UP045
    add("--output", type=Path, required=True, help="folder for drift.json, drift.csv and drift.png")
    add("--evaluation", type=Optional[Path], help="YAML file of fit or test, whose evaluation sets are prompts")  # noqa: UP045
    add("--prompts", type=Optional[dict[str, str]], help=_PROMPTS)  # noqa: UP045
    add("--image-folder", type=Optional[str], help="where relative image paths of files start from")  # noqa: UP045
    add("--most", type=int, default=64, help="most prompts of each set, the first ones (%(default)s)")
    add("--batch-size", type=int, default=8, help="prompts in one forward pass (%(default)s)")
    add("--columns", type=Optional[Path], help="a run's folder, or the audit.json of fuse: which columns HPA kept")  # noqa: UP045
    add("--blocks", type=Optional[str], help="dotted name of the list of decoder blocks (default: found)")  # noqa: UP045
    add("--device", type=str, default="cpu", help="where the prompts run (%(default)s)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Compare two checkpoints."""
    options = parser().parse_args(arguments)
    for name in ("most", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected at least 1")
    from hpa_lightning.drift import compare_models
    from hpa_lightning.drift.drift_inputs import read_prompts
    from hpa_lightning.report.two_models_page import block_table, part_table, write_two_models

    prompts = read_prompts(options.evaluation, options.prompts, options.most, options.image_folder)
    found = compare_models(
        options.before,
        options.after,
        options.base,
        prompts,
        kept_from=options.columns,
        batch_size=options.batch_size,
        blocks=options.blocks,
        device=options.device,
        progress=True,
    )
    write_two_models(found, options.output)
    print(f"{block_table(found).text()}\n\n{part_table(found).text()}")
    if not prompts:
        print("Weights alone: --evaluation or --prompts name prompts whose hidden states are compared.")
    print(options.output / "drift.png")
