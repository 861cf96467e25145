"""The directions and energies of each distinct protected input, in memory and in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.functional import InputSketch, InputSpectrum


class ProtectedSpectra:
    """Spectra by the name of the first layer that has the input: an input's directions once, and nothing beside them.

    Of a sketch the directions are those that their bfloat16 copy spans
    (:func:`hpa_lightning.functional.half_precision_basis`), so that checkpoints hold the copy and a resumed fit has the
    same to the bit. They turn by about 2e-3: the action ``tr(D K D^T)`` is counted to 0.2 %, and of an update that has
    left directions at most 1e-5 of what it would do without leaving them comes back and is not counted
    (tests/callbacks/test_protected_spectra.py). Of whole matrices the directions are held and saved in float32.

    LLaMA-7B's inputs have 745,472 columns: 192 directions of each are 0.57 GB in memory and 0.29 GB in a checkpoint.
    """

    def __init__(self) -> None:
        self._spectra: dict[str, InputSpectrum] = {}
        self._turns: dict[str, Tensor] = {}  # of sketches: directions @ turn is the bfloat16 copy

    def __getitem__(self, name: str) -> InputSpectrum:
        return self._spectra[name]

    def take(self, name: str, inputs: Tensor | InputSketch) -> None:
        """Take the spectrum of an input: of the whole ``X^T X`` `(c, c)`, or of a sketch of it."""
        self._hold(name, F.input_spectrum(inputs), rounded=isinstance(inputs, InputSketch))

    def _hold(self, name: str, found: InputSpectrum, rounded: bool) -> None:
        if rounded:
            directions, self._turns[name] = F.half_precision_basis(found.directions)
            found = InputSpectrum(directions, found.energies)
        self._spectra[name] = found

    def share(self, trainer: L.Trainer, devices: Mapping[str, torch.device]) -> None:
        """Give all processes the first one's, since what a rank computes by itself may differ in the last bit."""
        for name, found in self._spectra.items():
            found = InputSpectrum(*trainer.strategy.broadcast((found.directions, found.energies)))
            self._spectra[name] = found.to(devices[name])
        self._turns = trainer.strategy.broadcast(self._turns)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors on the CPU, which :meth:`from_state` reads: directions in bfloat16 where they are a sketch's."""
        state = {}
        for name, found in self._spectra.items():
            turn = self._turns.get(name)
            directions = found.directions.cpu() if turn is None else F.half_precision_copy(found.directions, turn)
            state[name] = {"directions": directions, "energies": found.energies.cpu()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ProtectedSpectra:
        """Undo :meth:`state_dict`; older checkpoints hold sketches and whole matrices, as :meth:`take` takes them."""
        spectra = cls()
        for name, saved in state.items():
            if isinstance(saved, Tensor):
                spectra.take(name, saved)
            elif "directions" in saved:
                directions = saved["directions"]
                spectra._hold(name, InputSpectrum(directions, saved["energies"]), directions.dtype == torch.bfloat16)
            else:
                spectra.take(name, InputSketch.from_state(saved))
        return spectra
