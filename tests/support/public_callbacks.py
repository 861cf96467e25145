"""Every public callback of the package."""

from __future__ import annotations

import inspect

import lightning as L

import hpa_lightning.callbacks
from hpa_lightning.callbacks import baselines

PUBLIC = [
    found
    for package in (hpa_lightning.callbacks, baselines)
    for found in (getattr(package, name) for name in package.__all__)
    if inspect.isclass(found) and issubclass(found, L.Callback) and found is not hpa_lightning.callbacks.TaskCallback
]
