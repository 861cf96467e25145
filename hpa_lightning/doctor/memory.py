"""How much memory a fit needs, counted from shapes: weights, gradients, optimizer, and what the method keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpa_lightning.callbacks import FocusPartition, NullSpaceProjection
from hpa_lightning.callbacks.calibrator import Calibrator
from hpa_lightning.callbacks.hessian_memory import HessianMemory
from hpa_lightning.callbacks.reference_weights import ReferenceWeights
from hpa_lightning.callbacks.task_end_fusion import TaskEndFusion
from hpa_lightning.callbacks.tuned_layers import TunedLayers
from hpa_lightning.doctor.fit_plan import FitPlan
from hpa_lightning.modules.tuned_linear import TunedLinear, find_tuned_linears

#: Last names of layers of one module that read the same input, so that they share a Hessian.
_SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_HESSIAN = 4  # bytes for a pair of columns: one half of a float64 matrix
_REMEMBERED = 4  # a whole float32 matrix
_HALF = 2  # a bfloat16 number of a sketch
_DIAGONAL = 8  # its diagonal, float64
_NUMBERS = 24  # its error, count and rank
_TOKENS = 640  # of a sample with a picture, where nothing limits it


@dataclass(frozen=True)
class Need:
    """One part of the memory.

    Args:
        what: in words.
        bytes: how much, on each device or on the host.
        place: ``"device"`` or ``"host"``.
        when: ``"always"``, ``"training"``, ``"calibration"``.
        by: the callback that keeps it; ``""`` for the fit itself.
    """

    what: str
    bytes: int
    place: str = "device"
    when: str = "always"
    by: str = ""


def estimate_memory(plan: FitPlan, tokens: int | None = None) -> list[Need]:
    """Estimate what a fit on one device holds, without activations, which depend on batch and length.

    Args:
        plan: the fit.
        tokens: length of a calibration sample; the data's longest, or 640, when ``None``.
    """
    module = plan.module
    parameters = list(module.parameters())
    tuned = [parameter for parameter in parameters if parameter.requires_grad]
    needs = [
        Need("weights", _bytes([*parameters, *module.buffers()])),
        Need("gradients", _bytes(tuned), when="training"),
        Need("optimizer", _optimizer_bytes(module, tuned), when="training"),
    ]
    for callback in plan.callbacks:
        needs += _of_callback(callback, module, tokens or plan.max_length or _TOKENS)
    return needs


def peak(needs: Sequence[Need], place: str) -> int:
    """Most bytes that are held at one time: training and calibration take turns."""
    of = [need for need in needs if need.place == place]
    moments = {need.when for need in of} - {"always"}
    always = sum(need.bytes for need in of if need.when == "always")
    calibrating = {need.by: 0 for need in of if need.when == "calibration"}
    for need in of:
        if need.when == "calibration":
            calibrating[need.by] += need.bytes
    training = sum(need.bytes for need in of if need.when == "training")
    optimizer = sum(need.bytes for need in of if need.when == "training" and need.what == "optimizer")
    return always + (max(training, optimizer + max(calibrating.values(), default=0)) if moments else 0)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(item): item for item in tensors}.values())


def _optimizer_bytes(module: Any, tuned: Sequence[nn.Parameter]) -> int:
    """Found by one step of the optimizer itself on small parameters of the same dtypes, scaled up.

    Numbers that do not grow with a parameter (its step) are left out.
    """
    by_dtype: dict[torch.dtype, int] = defaultdict(int)
    for parameter in tuned:
        by_dtype[parameter.dtype] += parameter.numel()
    total = 0.0
    for dtype, count in by_dtype.items():
        sample = nn.Parameter(torch.zeros(16, 16, dtype=dtype, device="cpu"))
        optimizer = module.make_optimizer([sample])
        sample.grad = torch.ones_like(sample)
        optimizer.step()
        states = (value for state in optimizer.state.values() for value in state.values())
        held = sum(one.numel() * one.element_size() for one in states if isinstance(one, torch.Tensor) and one.ndim)
        total += held / sample.numel() * count
    return round(total)


def _of_callback(callback: Any, module: Any, tokens: int) -> Iterator[Need]:
    """What the parts of a callback of this package keep; nothing is known of other callbacks."""
    parts: dict[type, Any] = {type(part): part for part in getattr(callback, "parts", ())}
    layers = parts.get(TunedLayers)
    if layers is None:
        return
    name = type(callback).__name__
    blocks, linears = find_tuned_linears(module, layers.blocks, layers.target_modules)
    if calibrator := parts.get(Calibrator):
        wanted = calibrator.settings
        inputs = [_inputs([one for one in linears if one.layer == layer]) for layer in range(1, len(blocks) + 1)]
        hessians = max(sum(_HESSIAN * columns**2 for columns in block.values()) for block in inputs)
        yield Need("Hessians of one decoder block", hessians, when="calibration", by=name)
        hidden, samples = _hidden(linears), wanted.safety_samples + wanted.task_samples
        size = samples * tokens * hidden * next(module.parameters()).element_size()
        yield Need(f"hidden states of {samples} samples of {tokens} tokens", size, when="calibration", by=name)
    if (memory := parts.get(HessianMemory)) and memory.memory_weight > 0:
        kind = "Hessians" if memory.form == "exact" else "sketches"
        yield Need(f"{kind} of the earlier tasks", _held(memory, linears), "host", by=name)
    if isinstance(callback, NullSpaceProjection):
        exact, rank = callback.form == "exact", callback.rank
        held = [(columns, columns if exact else min(rank, columns)) for columns in _inputs(linears).values()]
        # A sketch's directions and the triangular matrix that makes a checkpoint's bfloat16 copy of them.
        most = sum(_REMEMBERED * (columns * k + (0 if exact else k * k)) for columns, k in held)
        yield Need("directions of the inputs that are kept away from, at most", most, when="training", by=name)
    before = _bytes([linear.weight for linear in linears])
    if ReferenceWeights in parts:
        yield Need("weights before the first task", before, "host", by=name)
    if isinstance(callback, TaskEndFusion | FocusPartition | NullSpaceProjection) and module.lora is None:
        yield Need("weights before the task", before, when="training", by=name)


def _held(memory: HessianMemory, linears: Sequence[TunedLinear]) -> int:
    """Bytes of one Hessian, or sketch, of every distinct input of the layers."""
    columns = _inputs(linears).values()
    if memory.form == "exact":
        return sum(_REMEMBERED * c**2 for c in columns)
    return sum((_HALF * min(memory.rank, c) + _DIAGONAL) * c + _NUMBERS for c in columns)


def _hidden(linears: Sequence[TunedLinear]) -> int:
    return min(linear.in_features for linear in linears)


def _inputs(linears: Sequence[TunedLinear]) -> dict[tuple[str, str], int]:
    """(module, input) -> number of columns; layers that read the same input count once."""
    found: dict[tuple[str, str], int] = {}
    for linear in linears:
        parent, _, leaf = linear.name.rpartition(".")
        group = next((names[0] for names in _SHARED if leaf in names), leaf)
        found[parent, group] = linear.in_features
    return found
