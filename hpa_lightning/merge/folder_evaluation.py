"""Evaluates a model's folder by the configuration of a `fit` or `test`."""

from __future__ import annotations

import gc
import inspect
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from hpa_lightning.declarations import load_yaml
from hpa_lightning.files import name_folder
from hpa_lightning.parsing import read_text

_MODULE = "hpa_lightning.modules.MLLMModule"
# What of a module's settings decides an answer; how it is tuned does not.
_OF_ANSWERS = ("dtype", "attn_implementation", "generation")


class FolderEvaluation:
    """`hpa-lightning test` of a configuration, with the model of a folder instead of its own.

    Data, judges, seed and trainer are the configuration's. Its callbacks, logger and adapters belong to a fit and are
    left out; one device is used.

    Args:
        path: a YAML file of `fit` or `test`.

    Raises:
        ValueError: no YAML, or no section ``data``.
    """

    def __init__(self, path: str | Path) -> None:
        content = load_yaml(read_text(path), str(path))
        if not isinstance(content, Mapping) or not isinstance(content.get("data"), Mapping | str):
            raise ValueError(f"{path} has no section data; expected a configuration of fit or test.")
        self.config = dict(content)

    def of(self, folder: str | Path, output: Path) -> dict[str, Any]:
        """The configuration that scores the model in ``folder`` and writes below ``output``."""
        given = self.config.get("model") or {}
        settings = dict(given.get("init_args") or {}) if isinstance(given, Mapping) else {}
        name = given.get("class_path", _MODULE) if isinstance(given, Mapping) else str(given)
        kept = {key: settings[key] for key in _OF_ANSWERS if settings.get(key) is not None}
        trainer = {**(self.config.get("trainer") or {}), "devices": 1, "num_nodes": 1, "strategy": "auto"}
        for fits_own in ("callbacks", "max_epochs", "max_steps", "fast_dev_run"):
            trainer.pop(fits_own, None)
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
        logger["init_args"] = {"save_dir": str(output), "name": "", "version": ""}  # type: ignore[assignment]
        return {
            "seed_everything": self.config.get("seed_everything", 0),
            "model": {"class_path": _of_folders(name), "init_args": {"model": str(folder), **kept}},
            "data": self.config["data"],
            "trainer": {**trainer, "logger": logger, "enable_checkpointing": False},
        }

    def run(self, folder: str | Path, output: Path) -> None:
        """Score the model in ``folder``; ``output`` is there as a whole, as `test` writes it, or not at all."""
        from hpa_lightning.lightning_commands import tuning_cli

        partial = output.with_name(output.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "evaluation.yaml").write_text(yaml.safe_dump(self.of(folder, partial)), encoding="utf-8")
        tuning_cli(["test", "--config", str(partial / "evaluation.yaml")])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        name_folder(partial / "test", output)
        shutil.rmtree(partial)


def _of_folders(path: str) -> str:
    """The module's class where it takes the folder of a model, else `MLLMModule`."""
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module or "hpa_lightning.modules"), name, None)
    return path if found is not None and "model" in inspect.signature(found).parameters else _MODULE
