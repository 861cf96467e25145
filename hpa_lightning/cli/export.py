"""`hpa-lightning export`: from a checkpoint to a Hugging Face folder or a peft adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Write one Hugging Face folder that from_pretrained loads, adapters merged, with a model card written from the run: data,
method, settings, safety before and after. A checkpoint from before a task's end, which the method has not fused yet, is
refused unless asked for."""


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("export", _DESCRIPTION)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint file of Lightning (.ckpt)")
    add("folder", type=Path, help="folder to be made")
    add("--run", type=Path, help="the run's folder: config.yaml, results.jsonl (default: found above the checkpoint)")
    add("--adapter", action="store_true", help="the LoRA adapter alone, for peft on the model before the run")
    add("--unfinished", action="store_true", help="export weights from before a task's end as they are")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Export a checkpoint."""
    options = parser().parse_args(arguments)
    from hpa_lightning.exporting import export_checkpoint

    source = export_checkpoint(options.checkpoint, options.folder, options.run, options.adapter, options.unfinished)
    kind = "adapter for peft" if options.adapter else "model for from_pretrained"
    print(f"{options.folder}: {kind}, with its card in README.md")
    if source.results is None:
        print("The card has no scores: no results.jsonl was found above the checkpoint (--run names the run's folder).")
