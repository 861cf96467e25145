"""The study "freeze each window of decoder blocks in turn", made from the configuration of any fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpa_lightning.declarations import instantiate
from hpa_lightning.study.grid import Study
from hpa_lightning.study.study_file import expand_study
from hpa_lightning.values import shown

_FREEZING = "hpa_lightning.callbacks.baselines.SafetyLayerFreezing"
_EVALUATION = "TaskEvaluation"


def windows_study(
    config: Mapping[str, Any], path: Path, size: int, stride: int, seeds: Sequence[int], blocks: int | None = None
) -> Study:
    """Return the study of a fit with nothing frozen and with each window of its decoder blocks frozen in turn.

    Args:
        config: of ``hpa-lightning fit``, with ``TaskEvaluation`` among its callbacks.
        path: where it is, for messages.
        size, stride: blocks of a window, and how far the next one is.
        seeds: of the runs; they replace the configuration's ``seed_everything`` and every ``seed`` equal to it.
        blocks: how many decoder blocks the model has; the model is built to count them when ``None``.

    Raises:
        ValueError: a configuration without model, data, trainer or ``TaskEvaluation``, or a window of all blocks.
    """
    if missing := [key for key in ("model", "data", "trainer") if not isinstance(config.get(key), Mapping)]:
        raise ValueError(f"{path} lacks {missing}; expected the configuration of a fit.")
    callbacks = config["trainer"].get("callbacks") or []
    if not any(_name(item).endswith(_EVALUATION) for item in callbacks):
        raise ValueError(f"{path} has no {_EVALUATION} among its callbacks; a study reads the results that it writes.")
    count = _count(config, path) if blocks is None else blocks
    content = {
        "title": f"Each window of {size} blocks frozen in turn",
        "text": f"Made by `hpa-lightning study windows {path.name}`.",
        "base": _base(config),
        "methods": {
            "nothing": {"title": "Nothing frozen"},
            "window": {
                "title": "Blocks ${first} to ${last} frozen",
                "windows": {"blocks": count, "size": size, "stride": stride},
                "callbacks": [{"class_path": _FREEZING, "init_args": {"layers": ["${first}", "${last}"]}}],
            },
        },
        "groups": {
            "windows": {
                "title": f"Windows of {size} blocks",
                "methods": ["nothing", "window"],
                "seeds": list(seeds),
                "reference": "nothing",
                "x": {"setting": "first", "label": f"first of the {size} frozen blocks"},
            }
        },
    }
    return expand_study(content, path)


def _base(config: Mapping[str, Any]) -> dict[str, Any]:
    old = config.get("seed_everything")

    def seeded(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: seeded(item, str(name)) for name, item in value.items()}
        if isinstance(value, list):
            return [seeded(item) for item in value]
        is_seed = key == "seed" and old is not None and value == old
        return "${seed}" if is_seed else value

    base = {key: seeded(value) for key, value in config.items() if key != "ckpt_path"}
    base["seed_everything"] = "${seed}"
    trainer = base["trainer"]
    trainer["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "${folder}", "name": "", "version": ""},
    }
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    for item in trainer["callbacks"]:
        if _name(item).endswith(_EVALUATION):
            item["init_args"] = {**(item.get("init_args") or {}), "method": "${title}", "report": False}
    return base


def _name(item: Any) -> str:
    return str(item.get("class_path", "")) if isinstance(item, Mapping) else str(item)


def _count(config: Mapping[str, Any], path: Path) -> int:
    from jsonargparse import ArgumentParser

    from hpa_lightning.modules import MLLMModule, find_decoder_blocks

    declared = config["model"]
    if "class_path" not in declared:
        raise ValueError(f"{path}: model is {shown(declared)}; expected a class_path, or pass --blocks.")
    settings = {key: value for key, value in (declared.get("init_args") or {}).items() if key != "start_from"}
    declared = {**declared, "init_args": settings}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MLLMModule, "model")
    return len(find_decoder_blocks(instantiate(parser, {"model": declared}, str(path)).model)[1])
