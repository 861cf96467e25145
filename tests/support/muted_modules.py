"""Modules that are trained outside a trainer, where nothing can be logged."""

from __future__ import annotations

from hpa_lightning.modules import MLLMModule


def muted(module: MLLMModule) -> MLLMModule:
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module
