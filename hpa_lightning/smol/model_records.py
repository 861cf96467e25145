"""What each model of a built benchmark says of itself, in a file of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.smol.stage_weights import BEFORE

MODEL_FILE = "smol_model.json"


def models_in(output: Path) -> dict[str, dict[str, Any]]:
    """Return the name of each model's folder in a benchmark's -> what is known of the model, whenever it was built.

    Raises:
        ValueError: a file that is no record of a model.
    """
    files = sorted(output.glob(f"model*/{MODEL_FILE}"))
    folders = [file.parent for file in files if file.parent.suffix != ".partial"]  # of a build that was killed
    found = {}
    for folder in folders:
        record = model_record(folder)
        if record is None:
            raise ValueError(f"{folder / MODEL_FILE} is no record of a model; remove the folder, and build it again.")
        found[folder.name] = record
    return found


def model_record(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a folder's model; ``None`` if the build has not made it.

    Records of earlier versions are told as those of today.
    """
    file = folder / MODEL_FILE
    known = parse_json(read_text(file), str(file)) if file.is_file() else None
    if not isinstance(known, dict):
        return None
    if "measured" in known:  # of the last stage's end, beside the model's own perplexity
        known["last_stage"] = last_stage(list(known.get("stages", ())), known.pop("measured"))
    return {"language": "smollm2", **known}


def last_stage(stages: Sequence[str], measured: Mapping[str, float]) -> dict[str, Any]:
    """Return what was measured at the end of the last stage's own fit, and what its model had been through before.

    That need not be this model: the projector is fitted between pretrained parts.

    >>> last_stage(["text_alignment", "projector"], {"perplexity": 22.98})
    {'name': 'projector', 'after': [], 'measured': {'perplexity': 22.98}}
    """
    if not stages:
        return {}
    return {"name": stages[-1], "after": list(BEFORE.get(stages[-1], ())), "measured": dict(measured)}
