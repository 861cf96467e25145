"""Loading the models of a filter, with errors that name the part and the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpa_lightning.values import cut


@contextmanager
def naming_model(part: str, model: str, kind: str) -> Iterator[None]:
    """Say which part needs which model where it cannot be loaded.

    Raises:
        ValueError: instead of what transformers or timm raise.
    """
    try:
        yield
    except Exception as error:  # of files, of the hub, of configurations: many classes
        said = " ".join(cut(error, 400).split())
        raise ValueError(
            f"{part}: model={model!r} cannot be loaded as {kind}: {said or type(error).__name__}"
        ) from error
