"""How two weights become one: the method and its numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.values import nearest, shown

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]

METHODS: tuple[str, ...] = get_args(Method)
OF_TWO = ("linear", "slerp")
"""Methods that merge two weights; the others merge what they have added to a third one, the base's."""


@dataclass(frozen=True)
class MergeSettings:
    """A method of merging and its numbers.

    ``linear`` and ``slerp`` go from the task-tuned weight to the safety-tuned one, by ``ratio`` of the way. The others
    keep ``W_base + scale * merge([W_task - W_base, W_safety - W_base])`` with the weights ``1 - ratio`` and ``ratio``,
    or those given. See :func:`hpa_lightning.functional.merge_task_vectors`.

    Args:
        method: one of :data:`METHODS`.
        ratio: of the safety-tuned model, in [0, 1].
        weights: of the task vectors, task's and safety's, instead of ``1 - ratio`` and ``ratio``.
        scale: factor of the merged task vector (mergekit's ``lambda``).
        density: share of the entries of each task vector that is kept, in (0, 1].
        convention: ``"mergekit"`` or ``"peft"``: whose computation the names of the task-vector methods mean.
        majority_sign_method: ``"total"`` or ``"frequency"``.
        normalize, rescale: instead of what the convention says.
        seed: of DARE.

    Raises:
        ValueError: an unknown name, a number outside its range, or a setting that the method does not use.
    """

    method: Method = "linear"
    ratio: float = 0.5
    weights: tuple[float, float] | None = None
    scale: float = 1.0
    density: float = 0.5
    convention: F.MergingConvention = "mergekit"
    majority_sign_method: F.MajoritySign = "total"
    normalize: bool | None = None
    rescale: F.Rescale | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"the method is {shown(self.method)}; expected one of {', '.join(METHODS)}"
                f"{nearest(str(self.method), METHODS)}."
            )
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"ratio is {self.ratio}; expected the safety-tuned model's share, in [0, 1].")
        if self.weights is not None and len(self.weights) != 2:
            raise ValueError(f"weights are {shown(self.weights)}; expected two numbers: the task's and the safety's.")
        if self.needs_base:
            F.check_merging(
                self.method,
                [*self.vector_weights, self.scale],
                self.density,
                self.majority_sign_method,
                self.rescale,
                self.convention,
            )
        self._check_used()

    def _check_used(self) -> None:
        unused = {"ratio"} if self.weights is not None else set()
        if not self.needs_base:
            unused |= {"weights", "scale", "density", "convention", "majority_sign_method", "normalize", "rescale"}
        if not self.method.startswith("dare"):
            unused |= {"rescale", "seed"}
        if not self.method.endswith("ties"):
            unused |= {"majority_sign_method"}
        if self.method == "task_arithmetic":
            unused |= {"density"}
        for field in dataclasses.fields(self):
            if field.name in unused and getattr(self, field.name) != field.default:
                beside = " with weights" if field.name == "ratio" else ""
                raise ValueError(
                    f"{field.name} is {shown(getattr(self, field.name))}, which {self.method}{beside} does not use; "
                    "leave it out."
                )

    @property
    def needs_base(self) -> bool:
        """Whether the method merges task vectors."""
        return self.method not in OF_TWO

    @property
    def vector_weights(self) -> tuple[float, float]:
        """The weights of the task vectors, task's and safety's."""
        return self.weights if self.weights is not None else (1.0 - self.ratio, self.ratio)

    def is_endpoint(self) -> bool:
        """Whether the merged weights are those of one of the two models."""
        return not self.needs_base and self.ratio in (0.0, 1.0)

    def merge(self, task: Tensor, safety: Tensor, base: Tensor | None, generator: torch.Generator) -> Tensor:
        """Merge one tensor, taken as one vector.

        Args:
            task, safety: of one shape and device, any floating dtype.
            base: likewise, where the method needs it.
            generator: draws what DARE drops, on any device.

        Returns:
            The merged tensor in float32 (float64 if one of them is).

        Raises:
            ValueError: values that are not finite, or no base where it is needed.
        """
        wide = torch.float64 if torch.float64 in (task.dtype, safety.dtype) else torch.float32
        if not task.numel():
            return task.to(wide)
        if not self.needs_base:
            lines = task.shape[0] if task.dim() > 1 else 1
            one, other = (tensor.to(wide).reshape(lines, -1) for tensor in (task, safety))
            merge = F.merge_linearly if self.method == "linear" else F.merge_spherically
            return merge(one, other, self.ratio).reshape(task.shape)
        if base is None:
            raise ValueError(f"{self.method} merges what was added to a base; there is none.")
        start = base.to(wide)
        merged = F.merge_task_vectors(
            [task.to(wide) - start, safety.to(wide) - start],
            self.method,  # type: ignore[arg-type]
            self.vector_weights,
            self.density,
            self.majority_sign_method,
            self.normalize,
            self.rescale,
            self.convention,
            generator,
        )
        return start + self.scale * merged
