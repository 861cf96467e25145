"""What a fit's configuration declares, built without the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from accelerate import init_empty_weights
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from transformers import AutoConfig

from hpa_lightning.architectures import auto_class_of
from hpa_lightning.declarations import instantiate, load_yaml
from hpa_lightning.modules import LoraSettings, MLLMModule, OSFSettings
from hpa_lightning.parsing import read_text

_EMPTY = "hpa_lightning.modules.MLLMModule"


@dataclass
class FitPlan:
    """A fit before it begins.

    Args:
        module: with a model whose weights take no memory where it is an ``MLLMModule``; of other classes, built.
        callbacks: of the trainer.
        strategy: its name, as the configuration says.
        max_length: longest sequence in tokens, if the data limit it.
    """

    module: MLLMModule
    callbacks: list[L.Callback] = field(default_factory=list)
    strategy: str = "auto"
    max_length: int | None = None

    @classmethod
    def from_config(cls, path: str | Path) -> FitPlan:
        """Read the YAML of `hpa-lightning fit`.

        Raises:
            ValueError: no section ``model``, or what a class says of its settings.
        """
        content = load_yaml(read_text(path), str(path))
        if not isinstance(content, dict) or "model" not in content:
            raise ValueError(f"{path} has no section `model`; expected a configuration of `hpa-lightning fit`.")
        trainer, data = content.get("trainer") or {}, content.get("data") or {}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callbacks", type=list[L.Callback])
        declared = trainer.get("callbacks") or []
        declared = declared if isinstance(declared, list) else [declared]
        callbacks = instantiate(parser, {"callbacks": declared}, str(path))
        strategy = trainer.get("strategy", "auto")
        named = strategy.get("class_path", "auto") if isinstance(strategy, dict) else str(strategy)
        length = (data.get("init_args") or {}).get("max_length") if isinstance(data, dict) else None
        return cls(_module(content["model"], str(path)), callbacks.callbacks, named.rpartition(".")[2], length)

    @classmethod
    def from_model(cls, name: str | Path, lora: LoraSettings | None = None, dtype: str = "float32") -> FitPlan:
        """Plan to tune a model by its name or folder, without callbacks; AdamW.

        Raises:
            ValueError: an architecture that is refused.
            OSError: no such model.
        """
        return cls(_empty_module({"model": str(name), "dtype": dtype}, lora, None))


def _module(declared: Any, where: str) -> MLLMModule:
    if isinstance(declared, str):
        declared = {"class_path": declared}
    path = declared.get("class_path", _EMPTY)
    if path not in (_EMPTY, "hpa_lightning.modules.mllm.MLLMModule", "MLLMModule"):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(MLLMModule, "model")
        module: MLLMModule = instantiate(parser, {"model": declared}, where).model
        return module
    settings = dict(declared.get("init_args") or {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable | None)
    parser.add_argument("--lora", type=LoraSettings | None)
    parser.add_argument("--osf", type=OSFSettings | None)
    given = {key: settings[key] for key in ("optimizer", "lora", "osf") if key in settings}
    made = instantiate(parser, given, where)
    return _empty_module(settings, made.lora, made.optimizer, made.osf)


def _empty_module(
    settings: Mapping[str, Any], lora: LoraSettings | None, optimizer: Any, osf: OSFSettings | None = None
) -> MLLMModule:
    model, config = settings.get("model"), settings.get("config")
    if (model is None) == (config is None):
        raise ValueError("expected either model (a name or a folder) or config (for random weights) in `model`.")
    named = str(model if config is None else config)
    loaded = AutoConfig.for_model(**config) if isinstance(config, dict) else AutoConfig.from_pretrained(named)
    dtype = settings.get("dtype", "float32")
    with init_empty_weights(include_buffers=False):
        built: nn.Module = auto_class_of(loaded).from_config(loaded, dtype=_dtype(dtype, loaded))
        keep = {key: settings[key] for key in ("freeze_vision", "train_modules") if key in settings}
        if optimizer is not None:
            keep["optimizer"] = optimizer
        return MLLMModule(model=built, processor=object(), lora=lora, osf=osf, **keep)


def _dtype(name: str, config: Any) -> torch.dtype:
    if name == "auto":
        return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {name!r}; expected float32, bfloat16, float16 or auto.")
    return found
