"""Every method's callbacks, for the tests that all of them must pass: one line for each."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from test_guarantees import settings

from hpa_lightning.callbacks import FocusPartition, HarmoniousFusion, MaskedFreezing, OrthogonalProjection

METHODS: dict[str, Callable[[], list[L.Callback]]] = {
    "in_training": lambda: [
        FocusPartition(probe_steps=2, **settings()),
        MaskedFreezing(),
        OrthogonalProjection(),
    ],
    "post_training": lambda: [HarmoniousFusion(**settings())],
}
