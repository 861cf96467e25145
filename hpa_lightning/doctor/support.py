"""Which parts of a fit are supported together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import strategies
from lightning.pytorch.strategies import Strategy, StrategyRegistry

from hpa_lightning.architectures import quantisation
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.trainer_checks import strategy_refusal
from hpa_lightning.doctor.fit_plan import FitPlan
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.tuned_linear import find_tuned_linears
from hpa_lightning.values import nearest


@dataclass(frozen=True)
class Verdict:
    """One finding: what was looked at, and why it is not supported (``""`` if it is)."""

    what: str
    reason: str = ""


def supported(plan: FitPlan, strategy: str | None = None) -> list[Verdict]:
    """Look at architecture, decoder blocks, tuned layers, and every callback under the strategy.

    Args:
        plan: the fit; an architecture that is refused has been refused before.
        strategy: its name for the Trainer or its class's; the plan's when ``None``.

    Raises:
        ValueError: no such strategy.
    """
    model = plan.module.model
    config: Any = model.config
    kind = "reads images" if hasattr(config, "vision_config") else "reads text alone"
    found = [Verdict(f"architecture {config.model_type}, {type(model).__name__}, {kind}")]
    found.append(_tried(lambda: _blocks(plan), "decoder blocks"))
    found.append(_tried(lambda: _layers(plan), "tuned linear layers"))
    if (quantised := quantisation(config)) is not None:
        found.append(_stored(quantised))
    named = strategy or plan.strategy
    kind_of_strategy = strategy_class(named)
    for callback in plan.callbacks:
        if isinstance(callback, TaskCallback):
            what = f"{type(callback).__name__} with {'one device' if named == 'auto' else named}"
            found.append(Verdict(what, strategy_refusal(kind_of_strategy, callback) or ""))
    return found


def _stored(quantised: Mapping[str, Any]) -> Verdict:
    """Of weights that are stored in a few bits; MXFP4 is of experts alone, which are no linear layers."""
    named = quantised.get("quant_method", "unknown")
    method = str(getattr(named, "value", named))
    what = f"weights quantised by {method}"
    if quantised.get("dequantize") or method == "mxfp4":
        return Verdict(f"{what}; not in the memory below, which counts whole weights")
    return Verdict(
        what,
        "tuned layers with quantised weights are refused (docs/strategies.md), and the memory below counts whole ones. "
        "Take the model's unquantised weights; where a program that merged them has left the entry, delete it",
    )


def _blocks(plan: FitPlan) -> str:
    name, blocks = find_decoder_blocks(plan.module)
    return f"{len(blocks)} decoder blocks in {name}"


def _layers(plan: FitPlan) -> str:
    _, linears = find_tuned_linears(plan.module)
    trained = sum(parameter.numel() for parameter in plan.module.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in plan.module.parameters())
    return f"{len(linears)} tuned linear layers, {trained / 1e6:.2f} of {total / 1e6:.2f} million parameters trained"


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy, by its name for the Trainer or its own.

    Raises:
        ValueError: no such strategy.
    """
    if name == "auto":
        return strategies.SingleDeviceStrategy
    if name in StrategyRegistry:
        found: type[Strategy] = StrategyRegistry[name]["strategy"]
        return found
    kind = getattr(strategies, name.rpartition(".")[2], None)
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        known = [*StrategyRegistry, *(item for item in strategies.__all__ if item.endswith("Strategy"))]
        raise ValueError(f"no strategy {name!r}{nearest(name, known)}")
    return kind


def _tried(look: Callable[[], str], what: str) -> Verdict:
    try:
        return Verdict(look())
    except Exception as error:  # whatever a check has to say
        return Verdict(what, " ".join(str(error).split()))
