"""Tensors that are kept while many others come and go."""

from __future__ import annotations

import torch
from torch import Tensor

# The C library's heap serves whatever is smaller than 32 MiB. What is kept there among short-lived tensors leaves holes
# that fit nothing else: calibration grew to nearly twice what it held.
_PIECE_BYTES = 64 << 20
_ALIGNMENT = 64  # entries


class Arena:
    """Copies of tensors in large pieces of memory; a piece is freed with the last of its copies and the arena.

    Args:
        entries: most that will be kept, where it is known: no piece is larger.
    """

    def __init__(self, entries: int | None = None) -> None:
        self._entries = entries
        self._piece: Tensor | None = None
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy."""
        size = tensor.numel()
        piece = self._piece
        if (
            piece is None
            or (piece.dtype, piece.device) != (tensor.dtype, tensor.device)
            or piece.is_inference() != torch.is_inference_mode_enabled()
            or self._used + size > piece.numel()
        ):
            room = _PIECE_BYTES // tensor.element_size()
            room = max(size, room if self._entries is None else min(room, self._entries))
            piece = self._piece = torch.empty(room, dtype=tensor.dtype, device=tensor.device)
            self._used = 0
        copy = piece[self._used : self._used + size].view(tensor.shape)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return copy.copy_(tensor)
