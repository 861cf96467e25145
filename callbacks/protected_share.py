"""What of the protected inputs an update leaves alone: the rule, and the numbers that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Share = Literal["energy", "output", "nearest", "refusals"]

DEFAULT_ENERGY = 0.95
"""Of the inputs that the refusals are told from; chosen on development seeds of `nano` and of `smol`."""
DEFAULT_MEMORY_ENERGY = 0.7
"""Of the earlier tasks' inputs; likewise."""
DEFAULT_SAFETY_SAMPLES = 128
"""Of null-space projection: the paper's 8 refusals have few tokens, and it is their inputs that count."""
DEFAULT_STREAM_BUDGET = 0.085
"""Of ``share="output"`` where no budget is given; chosen on development seeds of `nano`."""
DEFAULT_BUDGETS: dict[str, float] = {"nearest": 0.05, "refusals": 0.05}
"""Of each task, where none is given."""


@dataclass(frozen=True)
class ProtectedShare:
    """A rule of :class:`hpa_lightning.callbacks.NullSpaceProjection` and its numbers, which it explains.

    Args:
        share: the rule.
        energy: of ``"energy"``: the share of the trace; of the safety inputs alone where ``memory_energy`` is given.
        memory_energy: of ``"energy"``: the share of the trace of the earlier tasks' inputs.
        budget, stream_budget: of the other rules, the one or the other.
        refusal_budget: nats a token that the refusals may lose in a task; ``None``: they are not measured.
    """

    share: Share
    energy: float | None = None
    memory_energy: float | None = None
    budget: float | None = None
    stream_budget: float | None = None
    refusal_budget: float | None = None

    @classmethod
    def of(
        cls,
        share: Share | None,
        energy: float | None,
        memory_energy: float | None,
        budget: float | None,
        stream_budget: float | None,
        refusal_budget: float | None,
        safety_weight: float,
        memory_weight: float,
    ) -> ProtectedShare:
        """The rule that a user's settings ask for, ``None`` where they say nothing.

        Raises:
            ValueError: settings that exclude one another, or a number that is none of theirs.
        """
        if share is not None and share not in get_args(Share):
            raise ValueError(f"share is {share!r}; expected one of {list(get_args(Share))}.")
        shares = _named(energy=energy, memory_energy=memory_energy)
        budgets = _named(budget=budget, stream_budget=stream_budget, refusal_budget=refusal_budget)
        if shares and budgets:
            raise ValueError(f"{' and '.join(shares + budgets)}; expected shares of the trace or budgets, not both.")
        if share is None:
            share = "output" if budgets else "energy"
        if share == "energy":
            if budgets:
                raise ValueError(f"share='energy' with {' and '.join(budgets)}; expected energy=, and no budget.")
            return cls(share, *_energies(energy, memory_energy, safety_weight, memory_weight))
        if shares:
            raise ValueError(f"share={share!r} with {' and '.join(shares)}; expected a budget.")
        budget, stream_budget = _budgets(share, budget, stream_budget)
        refusal_budget = _refusals(share, budget, refusal_budget)
        return cls(share, budget=budget, stream_budget=stream_budget, refusal_budget=refusal_budget)


def _named(**settings: float | None) -> list[str]:
    """What has been set, as it would be written."""
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


def _energies(
    energy: float | None, memory_energy: float | None, safety_weight: float, memory_weight: float
) -> tuple[float, float | None]:
    """The shares of the safety inputs and of the earlier tasks' inputs; without the second it is one of both together.

    What a weight of 0 leaves out has a share of 0. Other weights say nothing beside two shares.
    """
    for name, value in (("energy", energy), ("memory_energy", memory_energy)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}; expected a share of the trace in [0, 1].")
    if energy is not None and memory_energy is None:
        return energy, None
    if safety_weight == memory_weight == 0:
        raise ValueError("safety_weight=0 and memory_weight=0 leave nothing to protect; expected one of them to be 1.")
    found = []
    for name, value, default, weighs, weight in (
        ("energy", energy, DEFAULT_ENERGY, "safety_weight", safety_weight),
        ("memory_energy", memory_energy, DEFAULT_MEMORY_ENERGY, "memory_weight", memory_weight),
    ):
        if weight == 0 and value is not None:
            raise ValueError(f"{weighs}=0 with {name}={value}; expected inputs to keep a share of.")
        if weight not in (0, 1):
            raise ValueError(
                f"{weighs} is {weight}, and safety and earlier tasks have a share each (energy and memory_energy), "
                "which no weight changes; expected 1, or 0 to leave them out. For one share of the weighed sum set "
                "energy= alone."
            )
        found.append(0.0 if weight == 0 else default if value is None else value)
    return found[0], found[1]


def _budgets(share: Share, budget: float | None, stream_budget: float | None) -> tuple[float | None, float | None]:
    """The budget of each task, or of the stream."""
    given = _named(budget=budget, stream_budget=stream_budget)
    if len(given) == 2:
        raise ValueError(f"{' and '.join(given)}; expected one of the two: of each task, or of the stream.")
    if share == "refusals" and stream_budget is not None:
        raise ValueError(f"share='refusals' with stream_budget={stream_budget}; expected budget=, nats of each task.")
    if not given:
        budget = DEFAULT_BUDGETS.get(share)
        stream_budget = DEFAULT_STREAM_BUDGET if budget is None else None
    for name, value in (("budget", budget), ("stream_budget", stream_budget)):
        if value is not None and not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; expected a finite number of at least 0.")
    return budget, stream_budget


def _refusals(share: Share, budget: float | None, refusal_budget: float | None) -> float | None:
    """The nats that the refusals may lose in a task."""
    if share == "refusals":
        if refusal_budget is not None:
            raise ValueError(f"share='refusals' with refusal_budget={refusal_budget}; expected budget= alone.")
        return budget
    if refusal_budget is not None and not 0.0 <= refusal_budget < float("inf"):
        raise ValueError(f"refusal_budget is {refusal_budget}; expected a finite number of at least 0.")
    return refusal_budget
