"""What enters the linear layers of the foreign module, and its inverse Hessian diagonals, in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def inputs_of(module: Any, batches: list[dict], names: list[str]) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    modules = dict(module.named_modules())
    module.eval()
    for batch in batches:
        keep = batch["attention_mask"].bool().numpy()
        hooks = [
            modules[name].register_forward_pre_hook(
                lambda inner, args, name=name, keep=keep: rows[name].append(args[0].double().numpy()[keep])
            )
            for name in names
        ]
        with torch.no_grad():
            module.model(batch["input_ids"])
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(value) for name, value in rows.items()}


def inverse_diagonal(x: np.ndarray, damping: float = 0.01) -> np.ndarray:
    hessian = 2.0 / len(x) * x.T @ x
    hessian[np.diag_indices_from(hessian)] += damping * np.mean(np.diag(hessian))
    return np.diag(np.linalg.inv(hessian))
