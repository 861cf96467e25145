"""Loading the models of a filter: whole, in evaluation mode, with errors that name the part and the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hpa_lightning.values import cut, names


@contextmanager
def naming_model(part: str, model: str, kind: str) -> Iterator[None]:
    """Say which part needs which model where it cannot be loaded.

    Raises:
        ValueError: in place of what transformers or timm raise.
    """
    try:
        yield
    except Exception as error:  # of files, of the hub, of configurations: many classes
        said = " ".join(cut(error, 400).split())
        raise ValueError(
            f"{part}: model={model!r} cannot be loaded as {kind}: {said or type(error).__name__}"
        ) from error


def load_whole(load: Callable[..., Any], model: str, dtype: str, device: str | None) -> Any:
    """Load a model of which every weight is in the file; a head that is made up would assess at random.

    Args:
        load: ``from_pretrained`` of an Auto class.
        model: folder or hub name.
        dtype: of the weights.
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: weights are missing in the file.
    """
    loaded, told = load(model, dtype=dtype, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"its file lacks the weights {names(missing)}, so it was not trained as one.")
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
