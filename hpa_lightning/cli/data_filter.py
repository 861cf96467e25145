"""`hpa-lightning data filter`: harmful records out of instruction data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

#: Image filters whose packages bring their weights: name -> class.
DETECTORS = {"opennsfw": "OpenNSFWFilter", "nudenet": "NudeNetFilter"}

DESCRIPTION = """\
Filter instruction data for harm, by parts that combine: a guard model, a text classifier, lists of phrases, an image
classifier. OUTPUT gets the kept and the dropped records as they are in the input, the reasons, every verdict, and
counts. Interrupt it at any moment; the same command continues, with the same result. With --limit nothing is written:
the first records are filtered, and examples shown. More parts, and all their settings: `parts` in the YAML file."""


def parser() -> CommandParser:
    """Options of the command; the defaults are those of the classes."""
    parser = CommandParser("data filter", DESCRIPTION)
    add = parser.add_argument
    add("--input", type=Path, required=True, help="JSON, JSON lines or parquet: LLaVA, ShareGPT, chat, Alpaca, VLGuard")
    add("--output", type=Path, help="folder to be made")
    add("--image-folder", type=Path, help="where relative image paths start (default: the input's folder)")
    add("--parts", type=Optional[dict[str, Any]], help="name: {class_path, init_args}; in the YAML file")  # noqa: UP045
    add("--phrases", type=str, nargs="+", default=[], help="lists of phrases: JSON as for judges, or one on every line")
    add("--refusals", type=str, help="find refusing answers, by this judge (default, rules-v2, ...)")
    add("--classifier", type=str, help="text classifier: folder or hub name")
    add("--labels", type=str, nargs="+", default=[], help="its labels that mean harm")
    add("--threshold", type=float, default=0.5, help="least score of these labels (%(default)s)")
    add("--guard", type=str, help="guard model with its chat template: folder or hub name")
    add("--guard-categories", type=str, nargs="+", help="that count, such as S1 S9 (default: all)")
    add("--guard-threshold", type=Optional[float], help="of the likelihood of `unsafe` (default: what it says)")  # noqa: UP045
    add("--image-classifier", type=str, help="of transformers or timm: folder or hub name")
    add("--image-labels", type=str, nargs="+", default=[], help="its labels that mean harm")
    add("--image-threshold", type=float, default=0.5, help="least score of these labels (%(default)s)")
    add(
        "--detectors",
        type=str,
        nargs="+",
        choices=tuple(DETECTORS),
        default=[],
        help="image filters with their weights",
    )
    add("--rule", choices=("any", "all", "votes"), default="any", help="parts that have to agree (%(default)s)")
    add("--votes", type=Optional[int], help="--rule votes: how many")  # noqa: UP045
    add(
        "--no-verdict",
        choices=("stop", "drop", "keep"),
        default="drop",
        help="records that no part decides on (%(default)s)",
    )
    add(
        "--unreadable",
        choices=("stop", "drop", "keep"),
        default="stop",
        help="pictures that cannot be opened (%(default)s)",
    )
    add("--bad-records", choices=("stop", "drop"), default="stop", help="records that cannot be read (%(default)s)")
    add("--device", type=str, help="of the models that options name (default: a GPU if there is one)")
    add("--chunk", type=int, default=64, help="records between two saves (%(default)s)")
    add("--limit", type=Optional[int], help="try it on this many records, and write nothing")  # noqa: UP045
    add("--examples", type=int, default=3, help="--limit: of each part (%(default)s)")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Filter a file, or try it on the first records."""
    options = parser().parse_args(arguments)
    if (options.output is None) == (options.limit is None):
        raise UserError("expected --output FOLDER, or --limit N to try the filter on the first N records")
    declared = _declared(options)
    from hpa_lightning.filtering import FilterRule, declared_parts, filter_data, preview_filter

    parts = declared_parts(declared, str(options.config[0]) if options.config else "the command line")
    rule = FilterRule(options.rule, options.votes, options.no_verdict, options.unreadable, options.bad_records)
    common = {"image_folder": options.image_folder, "rule": rule, "chunk": options.chunk, "progress": True}
    if options.limit is not None:
        counts, examples = preview_filter(options.input, parts, options.limit, examples=options.examples, **common)
        print("\n\n".join([*examples, counts.text()]))
        return
    outcome = filter_data(options.input, parts, options.output, **common)
    print(outcome.counts.text())
    print(
        f"\n{outcome.kept}: what is kept; image paths in it start from {options.image_folder or options.input.parent}"
    )
    if not outcome.counts.kept:
        print("Nothing is kept: this file cannot be trained on.")


def _declared(options: Any) -> dict[str, Any]:
    """All parts as they would be in the YAML file."""
    declared = dict(options.parts or {})
    _needs(options.classifier, options.labels, "--classifier", "--labels")
    _needs(options.image_classifier, options.image_labels, "--image-classifier", "--image-labels")
    for model, option in ((options.classifier, "threshold"), (options.image_classifier, "image_threshold")):
        if model is None and options[option] != parser().get_default(option):
            told = option.replace("_", "-")
            raise UserError(f"--{told} belongs to --{told.replace('threshold', 'classifier')}")
    if options.guard is None and (options.guard_categories or options.guard_threshold is not None):
        raise UserError("--guard-categories and --guard-threshold belong to --guard")
    asked = {
        "phrases": ("PhraseFilter", {"files": options.phrases}) if options.phrases else None,
        "refusals": ("RefusalFilter", {"judge": options.refusals}) if options.refusals else None,
        "classifier": ("TextClassifier", _classifier(options)) if options.classifier else None,
        "guard": ("GuardFilter", _guard(options)) if options.guard else None,
        "image classifier": ("ImageClassifier", _images(options)) if options.image_classifier else None,
        **{name: (DETECTORS[name], {}) for name in options.detectors},
    }
    for name, part in asked.items():
        if part is None:
            continue
        if name in declared:
            raise UserError(f"the part {name!r} is in the YAML file and is given by an option; give it once")
        declared[name] = {"class_path": part[0], "init_args": part[1]}
    if not declared:
        raise UserError(
            "no part of the filter is given: --phrases, --classifier, --guard, ..., or `parts` in a YAML file"
        )
    return declared


def _needs(model: str | None, labels: Sequence[str], option: str, labels_option: str) -> None:
    if bool(model) != bool(labels):
        raise UserError(f"{option} and {labels_option} belong together")


def _on(options: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return settings | ({"device": options.device} if options.device else {})


def _classifier(options: Any) -> dict[str, Any]:
    return _on(options, {"model": options.classifier, "labels": options.labels, "threshold": options.threshold})


def _images(options: Any) -> dict[str, Any]:
    settings = {"labels": options.image_labels, "threshold": options.image_threshold}
    return _on(options, {"model": options.image_classifier, **settings})


def _guard(options: Any) -> dict[str, Any]:
    settings = {"categories": options.guard_categories, "threshold": options.guard_threshold}
    return _on(options, {"model": options.guard, **settings})
