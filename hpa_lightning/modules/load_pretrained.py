"""Models and processors from names, folders and configurations, and which parameters are tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoProcessor

import hpa_lightning.modules.timm_mllm  # noqa: F401 - registers the architecture with the auto classes
from hpa_lightning.architectures import auto_class_of, check_architecture
from hpa_lightning.data.template import tokenizer_of
from hpa_lightning.modules.timm_processor import PROCESSOR_FILE, TimmProcessor
from hpa_lightning.modules.trainable import VISION, TrainableParts, select_parts


def build_model(model: Any, config: str | dict[str, Any] | None, dtype: str, attn_implementation: str | None) -> Any:
    """Return ``model`` if it is one, its pretrained weights if it is a name, or random weights from ``config``.

    The model is an image-text-to-text model or, where its configuration is one's, a causal language model.

    Raises:
        ValueError: neither or both were given, a name that leads to no model, a model of another type, or an
            architecture that is refused.
    """
    if (model is None) == (config is None):
        raise ValueError(
            "expected either model= (a name, a folder or a model) or config= (for random weights), or parts= (to be "
            "put together)."
        )
    if isinstance(model, nn.Module):
        check_architecture(getattr(model, "config", None))
        return model
    settings: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        settings["attn_implementation"] = attn_implementation
    if isinstance(model, str | Path):
        return auto_class_of(_config_of(model)).from_pretrained(model, **settings)
    if model is not None:
        raise ValueError(f"model is a {type(model).__name__}; expected a name, a folder or a torch module.")
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError(f"config has the keys {sorted(config)}; expected 'model_type' among them.")
        loaded = AutoConfig.for_model(**config)
    else:
        loaded = AutoConfig.from_pretrained(str(config))
    return auto_class_of(loaded).from_config(loaded, **settings)


def _config_of(model: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(model)
    except OSError as error:
        here = "is a folder without a model" if Path(model).is_dir() else "is no folder here, and the Hub gave no model"
        reason = str(error).rstrip(". ")
        raise ValueError(
            f"model {model} {here}: {reason}. Expected a folder that a model was saved to, or a name on the Hub; "
            "`hpa-lightning benchmark build` makes the model of a benchmark."
        ) from error


def load_processor(processor: Any, model: Any, config: Any) -> Any:
    """Return ``processor`` if it is one, else load it from its name, or from that of the model or configuration.

    The processor of a model that reads text alone is its tokenizer.

    Raises:
        ValueError: there is nothing to load it from, or nothing but a part of a processor.
    """
    if processor is None:
        processor = next((item for item in (model, config) if isinstance(item, str | Path)), None)
    if processor is None:
        raise ValueError("no processor: pass processor= (a name, a folder or a processor).")
    if not isinstance(processor, str | Path):
        return processor
    if (Path(processor) / PROCESSOR_FILE).is_file():
        return TimmProcessor.from_pretrained(processor)
    loaded = AutoProcessor.from_pretrained(processor)
    if not hasattr(tokenizer_of(loaded), "convert_tokens_to_ids"):  # it takes whatever it finds
        raise ValueError(
            f"{processor} holds a {type(loaded).__name__} and no tokenizer; expected a processor, or the "
            "tokenizer of a model that reads text alone."
        )
    return loaded


def select_trainable(
    model: nn.Module,
    has_lora: bool,
    freeze_vision: bool,
    train_modules: list[str] | None,
    trainable: TrainableParts | None = None,
) -> list[nn.Module]:
    """Set ``requires_grad`` of the parameters and return the vision towers that are fixed.

    With LoRA everything but the adapters is frozen already; ``train_modules`` are tuned beside them. Without it, they
    alone are tuned, or everything but a frozen vision tower. ``trainable`` says it by parts, instead of both.

    Raises:
        ValueError: a name in ``train_modules`` is not a submodule, a part that the model does not have, or two settings
            of what is trained.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in train_modules or () if name not in modules or not name]
    if unknown:
        tops = sorted({".".join(name.split(".")[:2]) for name in modules if name})
        raise ValueError(f"train_modules {unknown} are no submodules; expected dotted names such as {tops[:8]}.")
    towers = [module for name, module in modules.items() if name.rsplit(".", 1)[-1] in VISION]
    if trainable is not None:
        if train_modules is not None or not freeze_vision:
            raise ValueError(
                "trainable is given together with train_modules or freeze_vision=False; expected one way to say what "
                "is trained."
            )
        select_parts(model, trainable, has_lora)
        return [tower for tower in towers if not any(parameter.requires_grad for parameter in tower.parameters())]
    if not has_lora:
        model.requires_grad_(train_modules is None)
        if freeze_vision:
            for tower in towers:
                tower.requires_grad_(False)
    for name in train_modules or ():
        modules[name].requires_grad_(True)
    return [tower for tower in towers if not any(parameter.requires_grad for parameter in tower.parameters())]
