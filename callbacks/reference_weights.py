"""The part of a callback that holds the aligned model's weights, for methods that go back to them after every task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.modules.tuned_linear import TunedLinear


class ReferenceWeights(Part):
    """The tuned layers' weights from before the first task, on the CPU and in checkpoints: one copy of them.

    State: ``"aligned"``, these weights.

    Args:
        layers: whose weights are held.
    """

    def __init__(self, layers: TunedLayers) -> None:
        super().__init__(layers.owner)
        self.layers = layers
        self._aligned: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """How many weights are held."""
        return len(self._aligned)

    def prepare(self, task: CurrentTask) -> None:
        """To be called at every task's start: takes the weights before the first, and checks that they are there.

        Raises:
            ValueError: a later task tunes layers whose weights before the first task are not known.
        """
        if task.index == 0:
            self._aligned = {linear.name: linear.before().detach().to("cpu", copy=True) for linear in self.layers}
        unknown = [linear.name for linear in self.layers if linear.name not in self._aligned]
        if unknown:
            raise ValueError(
                f"{self.caller} has no weights from before the first task for {unknown[:3]}; the run was "
                "resumed from a checkpoint without this callback, or other layers are tuned than in the first task. "
                "Run the whole stream with it, on the same layers."
            )

    def of(self, linear: TunedLinear) -> Tensor:
        """A layer's weight before the first task, ``(out_features, in_features)``, on its device; not to be changed."""
        return self._aligned[linear.name].to(linear.weight.device)

    def state_dict(self) -> dict[str, Any]:
        return {"aligned": dict(self._aligned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._aligned = dict(state_dict["aligned"])
