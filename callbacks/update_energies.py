"""What updates have along the directions of protected inputs, of all tuned layers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.functional import InputSpectrum
from hpa_lightning.modules.fsdp import gather_all, local_tensor, sum_over_rows
from hpa_lightning.modules.tuned_linear import LoraLinear, TunedLinear

_TOGETHER = 16
"""Directions that are measured together, since fewer cost no less."""


class UpdateEnergies:
    """Measures ``||D u_i||^2`` of every layer's update, and knows how much of it tells whether a budget is kept.

    Args:
        spectrum_of: a layer -> the directions and energies of its protected inputs.
    """

    def __init__(self, spectrum_of: Callable[[TunedLinear], InputSpectrum]) -> None:
        self.spectrum_of = spectrum_of
        self._telling: list[int] = []  # first directions of each layer that told it before; (width): all of them

    def told(
        self, linears: Sequence[TunedLinear], energies: Tensor, budgets: Tensor, gone: Sequence[int], bounded: bool
    ) -> Tensor:
        """As :meth:`along`, of as many directions as it takes to see which updates are within their budgets.

        Products with all directions are what a step of whole weights costs. So only those are measured that told it
        before, and the rest of ``||D||^2`` counts along the one of the others that has the most energy: a bound of the
        action. Where it is beyond the budget all are measured, so that what follows for the update is the same.

        Args:
            linears: the layers.
            energies: ``(layers, width)`` float64, of the spectra.
            budgets: ``(layers,)`` float64.
            gone: directions that each layer's update has left for good.
            bounded: whether a bound may do; otherwise everything is measured, and the host never waits for the device.
        """
        width = energies.shape[1]
        if not bounded:
            return self.along(linears, width, gone)
        whole = [i for i, linear in enumerate(linears) if not isinstance(linear, LoraLinear)]
        telling = self._telling if len(self._telling) == len(linears) else [width] * len(linears)
        along = self.along(linears, width, gone, telling)
        beyond = ((energies * along).sum(1) > budgets * (1 - 1e-6)).tolist()  # a bound is off by some 1e-7, too
        again = [i for i in whole if beyond[i] and telling[i] < width]
        for i in again:
            along[i] = self.along([linears[i]], width, [gone[i]])[0]
        found = F.directions_that_tell(energies, along, budgets).tolist()
        self._telling = list(telling)
        for i in whole:
            if i in again or telling[i] == width:
                count = -(-found[i] // _TOGETHER) * _TOGETHER
                self._telling[i] = count if count < self.spectrum_of(linears[i]).directions.shape[1] else width
        return along

    def along(
        self, linears: Sequence[TunedLinear], width: int, gone: Sequence[int], telling: Sequence[int] | None = None
    ) -> Tensor:
        """The updates' energies along the directions, and last outside of them, of all processes' rows.

        Along directions that have been left for good there is none.

        Args:
            linears: the layers.
            width: columns of the result; filled up with zeros before the last.
            gone: directions that each layer's update has left for good.
            telling: of whole weights, how many first directions are measured; all when ``None``. What lies outside of
                these counts along the one of the others that has the most energy.

        Returns:
            ``(layers, width)`` float64.
        """
        reduce = sum_over_rows([linear.weight for linear in linears]) or (lambda sums: sums)
        adapters = [linear for linear in linears if isinstance(linear, LoraLinear)]
        factors = {linear.name: linear.factors for linear in adapters}
        whole = dict(zip(factors, gather_all([f.lora_a for f in factors.values()]), strict=True))
        grams: dict[str, Tensor] = {}
        if adapters:
            local = [F.adapter_gram(local_tensor(f.lora_b), f.scaling) for f in factors.values()]
            flat = reduce(torch.cat([gram.flatten() for gram in local]))
            parts = flat.split([gram.numel() for gram in local])
            grams = {name: part.view(gram.shape) for name, part, gram in zip(factors, parts, local, strict=True)}
        rows = []
        for index, linear in enumerate(linears):
            spectrum = self.spectrum_of(linear)
            count = spectrum.directions.shape[1]
            first = min(gone[index], count)
            if linear.name in grams:
                found = F.energies_along(whole[linear.name], spectrum.directions[:, first:], grams[linear.name])
            else:
                last = count if telling is None else max(first, min(telling[index], count))
                directions = spectrum.directions[:, first:last]
                found = F.energies_along(local_tensor(linear.trained), directions, origin=linear.origin())
                if last < count:
                    others = found.new_zeros(count + 1 - last)
                    others[int(spectrum.energies[last:].argmax())] = found[-1]
                    found = torch.cat([found[:-1], others])
            rows.append(padded(torch.cat([found.new_zeros(first), found]), width))
        if len(adapters) == len(linears):
            return torch.stack(rows)  # LoRA's factors were gathered
        summed = reduce(torch.stack(rows))
        kept = [rows[i] if linear.name in grams else summed[i] for i, linear in enumerate(linears)]
        return torch.stack(kept)


def padded(energies: Tensor, width: int) -> Tensor:
    """``(k + 1,)`` filled up with zeros before the last to ``(width,)``."""
    return torch.cat([energies[:-1], energies.new_zeros(width - len(energies)), energies[-1:]])
