"""The part of a callback that keeps what an update does to protected inputs within a share of the layers' outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hpa_lightning import functional as F
from hpa_lightning.callbacks.current_task import task_count
from hpa_lightning.callbacks.hessian_memory import HessianMemory
from hpa_lightning.callbacks.parts import Part
from hpa_lightning.callbacks.protected_spectra import ProtectedSpectra
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.callbacks.update_energies import UpdateEnergies, padded
from hpa_lightning.functional import InputSketch, InputSpectrum
from hpa_lightning.modules.fsdp import local_tensor
from hpa_lightning.modules.tuned_linear import TunedLinear

_ROUNDING = 1e-3
"""Of a budget: what it may be exceeded by after rounding."""


class OutputBudget(Part):
    """Bounds each layer's ``||X D^T||_F <= change ||X W^T||_F``, for safety inputs X and for those of earlier tasks.

    ``D`` is the task's update, ``W`` the weight before it. The inputs that share a layer's input are weighed into one
    matrix ``K = w_s H_s / s + w_m H_m / m`` with ``s`` and ``m`` what the layers that are fed by it make of them
    (``sum_l ||X W_l^T||_F^2``), so that one set of directions serves all of them, and both bounds follow from
    ``tr(D K D^T) <= change^2 min(s_l / s, m_l / m)``; a weight above 1 makes its bound tighter, by its square root.
    Of sketches the energies of :func:`hpa_lightning.functional.input_spectrum` count: together they are the inputs',
    each by itself is an estimate, so that the bound holds as far as what a sketch has lost lies as evenly as it is
    counted (within 5 % in the tests, on a LLaMA of 32 and 48 columns with sketches of 24 rows).

    A budget of the whole stream lets each of its T tasks use ``change = budget / sqrt(T)``: over the stream the squares
    of a layer's changes add up to at most ``budget^2``. That is what the accumulated change comes to where the tasks'
    changes are uncorrelated; it is never more than ``sqrt(T) budget``. A fit without a stream is one task.

    Layers that make nothing of the inputs (``W = 0``) have no scale to measure a change by: their updates have to leave
    all directions, and a warning names them.

    State: ``"spectra"``, the protected directions and energies of each distinct input
    (:class:`hpa_lightning.callbacks.protected_spectra.ProtectedSpectra`); ``"budgets"``, each layer's for a ``change``
    of 1; ``"left"``, what each layer still keeps of a first step along each direction; ``"change"``, what the task may
    use.

    Args:
        layers: under tuning.
        memory: of the earlier tasks, and the weights of both kinds of inputs.
        budget: a share, of each task, or of the stream; infinite: no bound but one that is set later.
        nearest: an update beyond its budget goes to the nearest one within it
            (:func:`hpa_lightning.functional.nearest_in_budget`); otherwise it leaves, for good, the fewest directions
            that bring it there.
        of_stream: the budget is one for all tasks of the stream.
    """

    def __init__(
        self, layers: TunedLayers, memory: HessianMemory, budget: float, nearest: bool, of_stream: bool = False
    ) -> None:
        super().__init__(layers.owner)
        self.layers = layers
        self.memory = memory
        self.budget = budget
        self.change = budget  # of the task; infinite: no bound
        self.nearest = nearest
        self.of_stream = of_stream
        if budget < math.inf:
            self.follows = {"stream_budget" if of_stream else "budget": "budget"}
        self._spectra = ProtectedSpectra()
        self._first: Mapping[str, str] = {}
        self._budgets: dict[str, float] = {}
        self._energies: Tensor = torch.empty(0)  # (layers, k + 1): of the spectra, padded with 0 before the last
        self._unit: Tensor = torch.empty(0)  # (layers,): the budgets
        self._left: Tensor = torch.empty(0)  # (layers, k + 1)
        self._gone: list[int] = []  # first directions that each layer's update has left for good
        self._updates = UpdateEnergies(self._spectrum)

    @property
    def left(self) -> Tensor:
        """What each layer still keeps of a first step along each direction, and last outside of them.

        ``(layers, k + 1)`` float64.
        """
        return self._left

    @left.setter
    def left(self, left: Tensor) -> None:
        self._left = left
        plan = _plan(left, [0] * len(left)) if len(left) else []
        self._gone = [0 if self.nearest else zeros for _, _, zeros in plan]

    def begin(
        self, trainer: L.Trainer, safety: Mapping[str, Tensor] | Mapping[str, InputSketch], first: Mapping[str, str]
    ) -> None:
        """Take the protected directions of a task, and each layer's budget.

        Args:
            trainer: of the fit.
            safety, first: as :meth:`HessianMemory.gather` returns them.
        """
        self.change = self.allowed(trainer)
        self._first = dict(first)
        silent: list[str] = []
        for name, inputs in safety.items():
            fed = [linear for linear in self.layers if first[linear.name] == name]
            protected = {"safety": inputs} if self.memory.safety_weight > 0 else {}
            if (earlier := self.memory.inputs.of(name)) is not None and self.memory.memory_weight > 0:
                protected["memory"] = earlier
            made = {what: [F.output_energy(one.before(), x) for one in fed] for what, x in protected.items()}
            totals = {what: sum(energies) for what, energies in made.items()}
            per = {what: 1.0 / total if total > 0 else 1.0 for what, total in totals.items()}
            kept = self.memory.kept(name, inputs, per.get("safety", 0.0), per.get("memory", 0.0))
            kept = kept.to(fed[0].weight.device)
            if isinstance(kept, InputSketch):
                kept = kept.scaled(1.0, self.memory.rank)
            self._spectra.take(name, kept)
            for index, linear in enumerate(fed):
                shares = [made[what][index] * per[what] for what in protected]
                self._budgets[linear.name] = min(shares, default=0.0)  # of nothing, nothing is asked
                silent += [linear.name] if min(shares, default=1.0) <= 0 else []
        if silent:
            rank_zero_warn(
                f"{self.caller}: {len(silent)} layers make nothing of the protected inputs before the task "
                f"({', '.join(silent[:3])}{', ...' if silent[3:] else ''}), so that no share of their output can bound "
                "a change: they learn nothing along these inputs."
            )
        self._take(trainer)
        self.left = torch.ones_like(self._energies)

    def allowed(self, trainer: L.Trainer) -> float:
        """What a task may use of the budget."""
        return self.budget / task_count(trainer) ** 0.5 if self.of_stream else self.budget

    def resume(self, trainer: L.Trainer, first: Mapping[str, str]) -> None:
        """Take the directions again that a checkpoint holds.

        Raises:
            ValueError: it holds none for some layer.
        """
        self._first = dict(first)
        missing = [linear.name for linear in self.layers if linear.name not in self._budgets]
        if missing:
            raise ValueError(
                f"the checkpoint holds no budget for {missing[:3]}; it was written while other layers were tuned, or "
                "with another share."
            )
        self._take(trainer)

    @torch.no_grad()
    def keep_(self, trainer: L.Trainer) -> None:
        """Bring every layer's update into its budget.

        What has been left for good is left first, so that what remains is all there is to measure. Layers whose
        updates are within their budgets then stay as they are: to know them, the host waits for the device once.
        """
        linears, energies, budgets = list(self.layers), self._energies, self._unit * self.change**2
        for linear, count in zip(linears, self._gone, strict=True):
            if count:
                basis = self._spectrum(linear).directions[:, :count]
                F.null_space_projection_(local_tensor(linear.trained), linear.origin(), basis)
        bounded = trainer.world_size == 1 and energies.device.type == "cpu"
        along = self._updates.told(linears, energies, budgets, self._gone, bounded)
        if self.nearest:
            factors = F.nearest_in_budget(energies, along, budgets)
        else:
            before = torch.tensor(self._gone, device=along.device)
            factors = F.left_factors(energies, along, budgets, F.leave_directions(energies, along, budgets, before))
        if trainer.world_size > 1:  # what ranks compute may differ in the last bit
            torch.distributed.broadcast(factors, src=0)
        self._left = self._left * factors
        plan = _plan(factors, self._gone)
        for linear, kept, first, (damped, last, _) in zip(linears, factors, self._gone, plan, strict=True):
            if damped:
                directions = self._spectrum(linear).directions[:, first:last]
                kept = torch.cat([kept[first : first + directions.shape[1]], kept[-1:]])
                F.damp_directions_(local_tensor(linear.trained), linear.origin(), directions, kept)
        if not self.nearest:
            self._gone = [zeros for _, _, zeros in plan]

    @torch.no_grad()
    def beyond(self) -> set[str]:
        """The layers whose updates are beyond their budgets by more than rounding."""
        linears = list(self.layers)
        along = self._updates.along(linears, self._energies.shape[1], [0] * len(linears))
        changes = ((self._energies * along).sum(1) / self._unit).sqrt().tolist()
        return {
            linear.name
            for linear, change in zip(linears, changes, strict=True)
            if change > (1 + _ROUNDING) * self.change + 2 * torch.finfo(linear.trained.dtype).eps
        }

    @torch.no_grad()
    def shares(self) -> dict[str, dict[str, float]]:
        """Of every layer, what a task's end reports.

        Returns:
            layer -> ``directions``, how many of the layer's input directions its updates leave (along which they are
            damped counts in part); ``energy``, the share of the protected inputs' energy in these; ``change``, the
            bound of ``||X D^T|| / ||X W^T||`` now.
        """
        result = {}
        along = self._updates.along(list(self.layers), self._energies.shape[1], self._gone)
        actions = (self._energies * along).sum(1).tolist()
        for index, linear in enumerate(self.layers):
            name = self._first[linear.name]
            energies = self._spectra[name].energies[:-1]
            gone = 1.0 - self.left[index, : len(energies)]
            total = self._spectra[name].trace
            budget = self._budgets[linear.name]
            result[linear.name] = {
                "directions": float(gone.sum()),
                "energy": min(float((energies * gone).sum()) / total, 1.0) if total > 0 else 0.0,
                "change": (actions[index] / budget) ** 0.5 if budget > 0 else 0.0,
            }
        return result

    def clear(self) -> None:
        """Let go of a task's directions."""
        self._spectra, self._first, self._budgets = ProtectedSpectra(), {}, {}
        self._updates = UpdateEnergies(self._spectrum)
        self.left = torch.empty(0)

    def _take(self, trainer: L.Trainer) -> None:
        devices = {self._first[linear.name]: linear.weight.device for linear in self.layers}
        self._spectra.share(trainer, devices)
        self._budgets = trainer.strategy.broadcast(self._budgets)
        energies = [self._spectra[self._first[linear.name]].energies for linear in self.layers]
        width = max(map(len, energies))
        self._energies = torch.stack([padded(one, width) for one in energies])
        unit = [self._budgets[linear.name] for linear in self.layers]
        self._unit = torch.tensor(unit, dtype=torch.float64, device=self._energies.device)
        self.left = self.left.to(self._energies.device)

    def _spectrum(self, linear: TunedLinear) -> InputSpectrum:
        return self._spectra[self._first[linear.name]]

    def state_dict(self) -> dict[str, Any]:
        return {
            "spectra": self._spectra.state_dict(),
            "budgets": dict(self._budgets),
            "left": self.left.cpu(),
            "change": self.change,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "spectra" not in state_dict:
            return  # written with another share; within a task resume() says so
        self._spectra = ProtectedSpectra.from_state(state_dict["spectra"])
        self._budgets, self.left = dict(state_dict["budgets"]), state_dict["left"]
        self.change = state_dict["change"]


def _plan(factors: Tensor, gone: list[int]) -> list[list[int]]:
    """Of each layer: whether anything beyond the directions that are gone is damped, up to which direction otherwise
    than what lies outside of all, and how many first factors are 0. The host waits for the device once.
    """
    inside, place = factors[:, :-1], torch.arange(1, factors.shape[1], device=factors.device)
    differs = (inside != factors[:, -1:]) & (place > torch.tensor(gone, device=factors.device)[:, None])
    last = torch.cat([torch.zeros_like(factors[:, :1]), differs * place], 1).amax(1)
    damped = (factors[:, -1] != 1.0) | (last > 0)
    zeros = (inside == 0.0).to(torch.int64).cumprod(1).sum(1)
    result: list[list[int]] = torch.stack([damped, last, zeros], 1).to(torch.int64).tolist()
    return result
