"""Features of pictures that a frozen vision tower has seen, so that it sees each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpa_lightning.float32_products import emulating


class FeatureMemory:
    """Remembers a frozen tower's features picture by picture, by what the picture's pixels are.

    A tower that is trained, in training mode, or whose weights have changed since, is asked anew. The features are
    kept in the main memory, in their own dtype: 16 places of 1280 channels in float32 take 82 kB.

    Args:
        pictures: as many are remembered, the first ones; those beyond are seen every time.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self._kept: dict[bytes, Tensor] = {}
        self._weights: Any = None

    def __len__(self) -> int:
        return len(self._kept)

    def features(self, tower: nn.Module, pixel_values: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what ``see`` makes of ``pixel_values (images, 3, height, width)``, remembered where it can be."""
        parameters = list(tower.parameters())
        if tower.training or any(parameter.requires_grad for parameter in parameters):
            return see(pixel_values)
        weights = [_state(one) for one in (*parameters, *tower.buffers())]
        if weights != self._weights:
            self._kept, self._weights = {}, weights
        how = torch.is_autocast_enabled(pixel_values.device.type), emulating()  # they decide dtype and rounding
        kind = f"{pixel_values.dtype} {tuple(pixel_values.shape[1:])} {how}".encode()
        keys = [hashlib.blake2b(_bytes(one)).digest() + kind for one in pixel_values.cpu()]
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        if not new:
            return torch.stack([self._kept[key] for key in keys]).to(pixel_values.device)
        with torch.no_grad():
            seen = see(pixel_values[new])
        rows = dict(zip(new, seen, strict=True))
        for place, row in rows.items():
            if len(self._kept) < self.pictures:
                self._kept[keys[place]] = row.detach().cpu().clone()
        return torch.stack(
            [rows[place] if place in rows else self._kept[key].to(seen.device) for place, key in enumerate(keys)]
        )

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """A copy, of this process or in another one, is empty: its model has weights at other addresses."""
        return type(self), (self.pictures,)


def _state(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to; tensors of inference mode have no count of that and are not written."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype


def _bytes(pixels: Tensor) -> bytes:
    found: bytes = pixels.contiguous().view(torch.uint8).numpy().tobytes()
    return found
