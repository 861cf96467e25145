"""A Lightning checkpoint, and the run that it belongs to."""

from __future__ import annotations

import importlib
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpa_lightning.checkpoints import checkpoint_fault
from hpa_lightning.declarations import load_yaml
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.linear_names import uncompiled_name
from hpa_lightning.modules.task_state import TASK_STATE, unfinished_weights
from hpa_lightning.parsing import read_text
from hpa_lightning.results.result_file import RESULT_FILE, read_results
from hpa_lightning.results.run_results import RunResults

CONFIG_FILE = "config.yaml"
_PARENTS = 3  # folders above a checkpoint in which its run is looked for


@dataclass
class TunedCheckpoint:
    """What a checkpoint and its run say.

    Attributes:
        path: the checkpoint.
        content: its content, tensors on the CPU, mapped from the file.
        run: the folder of the run, if there is one.
        config: the run's ``config.yaml``; ``{}`` without one.
        results: what the run measured; ``None`` if it measured nothing.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)
    run: Path | None
    config: dict[str, Any]
    results: RunResults | None

    @classmethod
    def read(cls, path: str | Path, run: str | Path | None = None) -> TunedCheckpoint:
        """Read a checkpoint.

        Args:
            path: a checkpoint file of Lightning.
            run: the folder of its run; the nearest one above the checkpoint that holds a ``config.yaml`` or a
                ``results.jsonl`` when ``None``.

        Raises:
            ValueError: no such file, a folder of shards, a torn file, weights alone of another program, or no such run.
        """
        path = Path(path)
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder of shards; expected one file. Make one with `python -m "
                f"lightning.pytorch.utilities.consolidate_checkpoint {path}` and export that."
            )
        if not path.is_file():
            raise ValueError(f"there is no checkpoint {path}.")
        if fault := checkpoint_fault(path):
            raise ValueError(f"{path} is unusable: {fault}.")
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:  # loading it would run code
            raise ValueError(f"{path} holds objects of user-defined classes and is not loaded: {error}") from error
        content["state_dict"] = {uncompiled_name(name): weight for name, weight in content["state_dict"].items()}
        if run is not None and not any((Path(run) / name).is_file() for name in (CONFIG_FILE, RESULT_FILE)):
            raise ValueError(f"{run} holds neither {CONFIG_FILE} nor {RESULT_FILE}; expected the folder of a run.")
        folder = Path(run) if run is not None else _run_above(path)
        config: dict[str, Any] = {}
        if folder is not None and (folder / CONFIG_FILE).is_file():
            config = load_yaml(read_text(folder / CONFIG_FILE), str(folder / CONFIG_FILE)) or {}
        return cls(path, content, folder, config, None if folder is None else _measured(folder))

    @property
    def state(self) -> dict[str, Any] | None:
        """What the task callbacks said when it was saved; ``None`` without any."""
        return self.content.get(TASK_STATE)

    @property
    def unfinished(self) -> str | None:
        """Why these weights are not the ones that count, in one sentence; ``None`` if they are."""
        return unfinished_weights(self.state)

    @property
    def step(self) -> int | None:
        """Index of the last task whose end is in the weights, -1 before the first; ``None`` if it is not known."""
        return None if self.state is None else int(self.state["finished_tasks"]) - 1

    def module(self) -> MLLMModule:
        """Build the module that was tuned, with the checkpoint's weights.

        Raises:
            ValueError: a module without a Hugging Face model, or weights that do not fit it.
        """
        declared = self.config.get("model")
        if isinstance(declared, str):
            declared = {"class_path": declared}
        settings = self.content.get("hyper_parameters") or {}
        path = (declared or {}).get("class_path") or settings.get("_class_path")
        kind = _imported(path) if path else MLLMModule
        if not (isinstance(kind, type) and issubclass(kind, MLLMModule)):
            raise ValueError(
                f"{self.path} is of a {path}; expected an MLLMModule, whose model is a Hugging Face model. Load your "
                "own module with load_from_checkpoint and save its model with save_pretrained."
            )
        module = self._built(kind, declared)
        try:
            own = {uncompiled_name(name): name for name in module.state_dict()}
            module.load_state_dict({own.get(name, name): weight for name, weight in self.content["state_dict"].items()})
        except RuntimeError as error:
            source = f"{self.run}/{CONFIG_FILE}" if declared else "its own settings"
            raise ValueError(f"{self.path} does not fit the model of {source}: {error}") from error
        return module

    def _built(self, kind: type[MLLMModule], declared: dict[str, Any] | None) -> MLLMModule:
        if not declared:
            return kind.load_from_checkpoint(self.path, map_location="cpu", strict=False)
        from jsonargparse import ArgumentParser

        # Where training began does not matter: all weights are in the checkpoint.
        settings = {key: value for key, value in (declared.get("init_args") or {}).items() if key != "start_from"}
        declared = {**declared, "init_args": settings}

        from hpa_lightning.declarations import instantiate

        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(MLLMModule, "model")
        module: MLLMModule = instantiate(parser, {"model": declared}, f"{self.run}/{CONFIG_FILE}").model
        return module


def _measured(folder: Path) -> RunResults | None:
    if not (folder / RESULT_FILE).is_file():
        return None
    events = read_results(folder)
    scored = any(event["event"] == "run" for event in events)  # without TaskEvaluation there are other events alone
    return RunResults(events, folder / RESULT_FILE) if scored else None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the class {path!r} of the run cannot be imported: {error}.") from error


def _run_above(path: Path) -> Path | None:
    for folder in path.resolve().parents[:_PARENTS]:
        if any((folder / name).is_file() for name in (CONFIG_FILE, RESULT_FILE)):
            return folder
    return None
