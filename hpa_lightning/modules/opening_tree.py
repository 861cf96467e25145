"""Openings of a reply as a tree of tokens, so that what several of them begin with is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class OpeningTree:
    """The tokens that something follows in some opening, each once for what stands before it.

    A token is read behind the prompt and behind its own ancestors alone, as in tree attention (Miao et al.,
    "SpecInfer", ASPLOS 2024); the last token of an opening is predicted and never read.

    Args:
        openings: the ids of each opening's tokens, at least one; none begins with all of another's.

    Attributes:
        tokens: the ids that are read.
        depths: how many tokens stand between the prompt and each of them.

    Example:
        >>> tree = OpeningTree([[5, 6, 7], [5, 6, 8], [9]])
        >>> tree.tokens, tree.depths
        ([5, 6], [0, 1])
    """

    def __init__(self, openings: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self._parents: list[int] = []  # -1: the prompt
        self._openings = [list(opening) for opening in openings]
        self._behind: list[list[int]] = []  # of every opening: which place predicts each of its tokens, 0 the prompt
        known: dict[tuple[int, ...], int] = {(): -1}
        for opening in self._openings:
            for length in range(1, len(opening)):
                begun = tuple(opening[:length])
                if begun not in known:
                    known[begun] = len(self.tokens)
                    self.tokens.append(opening[length - 1])
                    self.depths.append(length - 1)
                    self._parents.append(known[begun[:-1]])
            self._behind.append([known[tuple(opening[:length])] + 1 for length in range(len(opening))])

    def seen(self) -> Tensor:
        """Which token attends to which: itself and its ancestors, ``(tokens, tokens)`` bool."""
        found = torch.eye(len(self.tokens), dtype=torch.bool)
        for place, parent in enumerate(self._parents):
            if parent >= 0:
                found[place] |= found[parent]
        return found

    def sums(self, logits: Tensor) -> Tensor:
        """The natural log-probability of every opening, ``(prompts, openings)`` fp32, or fp64 for fp64 logits.

        Args:
            logits: behind the prompt and then behind each of :attr:`tokens`, ``(prompts, 1 + tokens, vocabulary)``.
        """
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        normalisers = wide.logsumexp(-1)
        sums = []
        for opening, behind in zip(self._openings, self._behind, strict=True):
            places, said = torch.tensor(behind, device=logits.device), torch.tensor(opening, device=logits.device)
            sums.append((wide[:, places, said] - normalisers[:, places]).sum(1))
        return torch.stack(sums, dim=1)
