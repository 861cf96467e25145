"""Models of which every weight is in their file: what is made up would say something at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hpa_lightning.values import names


def load_whole(load: Callable[..., Any], model: str, dtype: str, device: str | None) -> Any:
    """Load a model in evaluation mode.

    Args:
        load: ``from_pretrained`` of an Auto class of transformers.
        model: folder or hub name.
        dtype: of the weights (``"bfloat16"``, ``"float32"``, ``"auto"``).
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: weights are missing in the file, such as a classifier's head.
    """
    loaded, told = load(model, dtype=dtype, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"its file lacks the weights {names(missing)}, so it was not trained as one.")
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
