"""What earlier tasks' inputs were to the tuned layers, one sum for each distinct input, whole or as a sketch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hpa_lightning.functional import InputSketch
from hpa_lightning.functional.sketched_regression import remembered_sketch
from hpa_lightning.modules.fsdp import cpu_state


class RememberedInputs:
    """The sum of the earlier tasks' Hessians, for each distinct input of the layers that they tuned.

    Layers that share an input share its sum, also where an earlier task tuned others of them.

    Attributes:
        sums: name of a layer -> `sum_i H_i` of its input: ``(in_features, in_features)``, or a sketch of it.
        places: every layer that was tuned -> the layer under whose name its input stands in ``sums``.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | InputSketch] = {}
        self.places: dict[str, str] = {}

    def of(self, name: str) -> Tensor | InputSketch | None:
        """The sum for a layer's input; ``None`` where no earlier task has left one."""
        return self.sums.get(self.places.get(name, name))

    def add(self, tasks: Mapping[str, Tensor] | Mapping[str, InputSketch], first: Mapping[str, str], rank: int) -> None:
        """Add a task.

        Args:
            tasks: name of the first layer that has an input -> its Hessian, or a sketch.
            first: every tuned layer -> the first one with the same input.
            rank: of the sketches' sum.
        """
        self.join(first, rank)
        for leader, task in tasks.items():
            self._add(self.places.get(leader, leader), task, rank)
        self.places |= {name: self.places.get(leader, leader) for name, leader in first.items()}

    def join(self, first: Mapping[str, str], rank: int) -> None:
        """Give layers that share an input now one sum, whichever of them the earlier tasks tuned; see :meth:`add`."""
        for leader in dict.fromkeys(first.values()):
            sharing = [name for name, same in first.items() if same == leader and name in self.places]
            places = list(dict.fromkeys(self.places[name] for name in sharing))
            for other in places[1:]:
                self._add(places[0], self.sums.pop(other), rank)
                self.places |= {name: places[0] for name, at in self.places.items() if at == other}
            if places:
                self.places[leader] = places[0]

    def lacking(self, first: Mapping[str, str]) -> list[str]:
        """Those of a task's layers whose input no earlier task has left, if there was one; ``first`` as in add."""
        known = {first[name] for name in self.places if name in first}
        return [name for name, leader in first.items() if self.places and leader not in known]

    def _add(self, place: str, task: Tensor | InputSketch, rank: int) -> None:
        held = self.sums.get(place)
        if isinstance(task, Tensor):
            self.sums[place] = held + task if isinstance(held, Tensor) else task
        else:
            assert not isinstance(held, Tensor)
            self.sums[place] = remembered_sketch(held, task.to("cpu"), rank)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which :meth:`from_state` reads."""
        whole = cpu_state({name: held for name, held in self.sums.items() if isinstance(held, Tensor)})
        sketches = {name: held.state_dict() for name, held in self.sums.items() if isinstance(held, InputSketch)}
        return {"memory": whole | sketches, "remembered_as": dict(self.places)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], rank: int | None) -> RememberedInputs:
        """Undo :meth:`state_dict`; as sketches of ``rank`` rows, from whole Hessians too, unless it is ``None``."""
        inputs = cls()
        for name, saved in state["memory"].items():
            if rank is None:
                inputs.sums[name] = saved
            elif isinstance(saved, Tensor):
                inputs.sums[name] = sketch = InputSketch.from_gram(saved, min(rank, len(saved)))
                sketch.round_()
            else:
                sketch = InputSketch.from_state(saved)
                fits = sketch.rank == min(rank, sketch.columns)
                inputs.sums[name] = sketch if fits else sketch.scaled(1.0, rank)
        # Checkpoints written before there were places hold the first layer of each group.
        inputs.places = dict(state.get("remembered_as", {name: name for name in state["memory"]}))
        return inputs
