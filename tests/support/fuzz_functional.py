"""The functional core on tensors of any shape, dtype, layout, scale and device: right results, or the documented error.

Every call either returns what its docstring says (shapes, dtypes, finite for finite arguments, no graph, arguments
unchanged but for those of in-place functions) or raises a short ValueError and changes nothing. In the optimizer step
nothing looks for NaN: there it stays visible in the result.
"""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support.fuzz_readers import LONGEST
from torch import Tensor

from hpa_lightning import functional as hpa
from hpa_lightning.functional import adapter_penalty as penalty
from hpa_lightning.functional.brain_surgeon import compensate

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
F64, BOOL = torch.float64, torch.bool


@dataclass
class Draw:
    """One draw of sizes, dtypes and scales, and tensors of them."""

    random: random.Random

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        self.r, self.c, self.q = (self.random.choice((1, 1, 2, 3, 5, 8, 17, 40)) for _ in range(3))
        self.dtype = self.random.choice(DTYPES)
        self.extreme = self.random.random() < 0.3

    def tensor(self, *shape: int, dtype: torch.dtype | None = None, positive: bool = False) -> Tensor:
        dtype = dtype or self.dtype
        values = torch.randn(shape, generator=self.generator, dtype=F64)
        if self.extreme:  # anywhere in the dtype's range, entries apart by some orders of magnitude
            limit = 0.9 * float(torch.log10(torch.tensor(torch.finfo(dtype).max, dtype=F64)))
            spread = torch.rand(shape, generator=self.generator, dtype=F64) * self.random.choice((0, 0, 1, 8))
            values = values * 10 ** (self.random.uniform(-limit, limit) - spread)
        kind = self.random.random()
        if kind < 0.07:
            values = torch.zeros_like(values)
        elif kind < 0.15:
            values = values * (torch.rand(shape, generator=self.generator) < 0.5)
        if positive:
            values = values.abs() + torch.finfo(dtype).tiny
        most = torch.finfo(dtype).max
        return self.laid_out(values.clamp(-most, most).to(dtype))

    def mask(self, *shape: int) -> Tensor:
        share = self.random.choice((0.0, 0.3, 0.5, 1.0))
        return self.laid_out(torch.rand(shape, generator=self.generator) < share)

    def hessian(self) -> Tensor:
        rows = self.tensor(self.c + 3, self.c, dtype=F64)
        gram = rows.T @ rows
        gram += 0.01 * gram.diagonal().mean() * torch.eye(self.c, dtype=F64)
        return self.laid_out(gram.to(self.random.choice((torch.float32, F64))))

    def factor(self) -> Tensor:
        """An upper triangular factor with a positive diagonal."""
        upper = self.tensor(self.c, self.c, dtype=F64).triu()
        return upper + (upper.abs().amax() + torch.finfo(F64).tiny) * torch.eye(self.c, dtype=F64)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """The same values with other strides, or with a gradient."""
        kind = self.random.random()
        if kind < 0.1 and tensor.dim() == 2:
            tensor = tensor.T.contiguous().T
        elif kind < 0.2 and tensor.dim():
            wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
            wide[..., ::2] = tensor
            tensor = wide[..., ::2]
        elif kind < 0.3 and tensor.is_floating_point():
            tensor = tensor.clone().requires_grad_()
        return tensor

    def number(self, low: float, high: float) -> float:
        return self.random.choice((low, high, self.random.uniform(low, high), self.random.uniform(low, high)))


Expected = list[tuple[tuple[int, ...], torch.dtype | None]]


@dataclass(frozen=True)
class Case:
    """A function, arguments that it takes, and what it returns for them.

    Args:
        call: the function.
        make: draw -> its arguments by name.
        returns: arguments -> shapes and dtypes (None: any) of the tensors that it returns.
        changes: names of arguments that it changes.
        looks: it refuses values that are not finite.
    """

    call: Callable[..., Any]
    make: Callable[[Draw], dict[str, Any]]
    returns: Callable[[dict[str, Any]], Expected]
    changes: tuple[str, ...] = ()
    looks: bool = True


def _stat(*tensors: Tensor) -> torch.dtype:
    return F64 if any(tensor.dtype == F64 for tensor in tensors) else torch.float32


def _pair(d: Draw) -> dict[str, Any]:
    return {"weight_prev": d.tensor(d.r, d.c), "weight_new": d.tensor(d.r, d.c, dtype=d.random.choice(DTYPES))}


def _lora(d: Draw) -> dict[str, Any]:
    return {"lora_a": d.tensor(d.q, d.c), "lora_b": d.tensor(d.r, d.q, dtype=d.random.choice((d.dtype, torch.float32)))}


def _focus(d: Draw) -> dict[str, Any]:
    return {"safety_focus": d.tensor(d.c, positive=True), "task_focus": d.tensor(d.c, positive=True)}


def _stream(features: int, inputs: Tensor, mask: Tensor, damping: float) -> Tensor:
    hessian = hpa.HessianAccumulator(features, damping)
    hessian.update(inputs, mask)
    hessian.update(inputs)
    return hessian.inverse_diagonal()


def _sketch(columns: int, rank: int, inputs: Tensor, mask: Tensor) -> Tensor:
    sketch = hpa.InputSketch(columns, rank)
    sketch.update(inputs, mask)
    sketch.update(inputs)
    return sketch.rows


def _same(name: str, dtype: bool = True) -> Callable[[dict[str, Any]], Expected]:
    return lambda a: [(tuple(a[name].shape), a[name].dtype if dtype else None)]


def _edited(a: dict[str, Any]) -> Expected:
    shape = tuple(a["weight_prev"].shape)
    return [(shape, a["weight_prev"].dtype), (shape, BOOL)]


def _units(d: Draw) -> dict[str, Any]:
    rows = d.random.random() < 0.3
    kept = {"retained": d.mask(d.r if rows else d.c), "units": "rows" if rows else "columns"}
    return {**kept, "orthogonal": d.random.random() < 0.5}


CASES: dict[str, Case] = {
    "state_cosines": Case(
        hpa.state_cosines,
        lambda d: {name: d.tensor(d.q, d.r, d.c) for name in ("before", "after")},
        lambda a: [(tuple(a["before"].shape[:2]), F64)],
    ),
    "column_energy": Case(
        hpa.column_energy, lambda d: {"delta": d.tensor(d.r, d.c)}, lambda a: [((a["delta"].shape[1],), F64)]
    ),
    "lora_column_energy": Case(
        hpa.lora_column_energy,
        lambda d: {**_lora(d), "scaling": d.number(0.0, 4.0)},
        lambda a: [((a["lora_a"].shape[1],), F64)],
    ),
    "column_focus": Case(
        hpa.column_focus,
        lambda d: {"energy": d.tensor(d.c, positive=True), "inverse_diagonal": d.tensor(d.c, positive=True)},
        _same("inverse_diagonal"),
    ),
    "row_focus": Case(
        hpa.row_focus,
        lambda d: {"delta": d.tensor(d.r, d.c), "inverse_diagonal": d.tensor(d.c, positive=True)},
        lambda a: [((a["delta"].shape[0],), a["inverse_diagonal"].dtype)],
    ),
    "lora_row_focus": Case(
        hpa.lora_row_focus,
        lambda d: {**_lora(d), "scaling": d.number(0.0, 4.0), "inverse_diagonal": d.tensor(d.c, positive=True)},
        lambda a: [((a["lora_b"].shape[0],), a["inverse_diagonal"].dtype)],
    ),
    "inverse_hessian_diagonal": Case(
        hpa.inverse_hessian_diagonal,
        lambda d: {"inputs": d.tensor(3 * d.r, d.c), "damping": d.number(0.0, 1.0)},
        lambda a: [((a["inputs"].shape[1],), _stat(a["inputs"]))],
    ),
    "HessianAccumulator": Case(
        _stream,
        lambda d: {
            "features": d.c,
            "inputs": d.tensor(2, d.r, d.c),
            "mask": d.mask(2, d.r),
            "damping": d.number(0.0, 1.0),
        },
        lambda a: [((a["inputs"].shape[-1],), _stat(a["inputs"]))],
    ),
    "InputSketch": Case(
        _sketch,
        lambda d: {"columns": d.c, "rank": d.q, "inputs": d.tensor(2, d.r, d.c), "mask": d.mask(2, d.r)},
        lambda a: [],
    ),
    "fuse": Case(hpa.fuse, lambda d: {**_pair(d), **_units(d)}, _same("weight_prev")),
    "fuse into a weight": Case(
        lambda weight_prev, weight_new, retained: hpa.fuse(weight_prev, weight_new, retained, out=weight_new),
        lambda d: {"weight_prev": d.tensor(d.r, d.c), "weight_new": d.tensor(d.r, d.c), "retained": d.mask(d.c)},
        _same("weight_prev"),
        changes=("weight_new",),
    ),
    "harmonious_fusion": Case(
        lambda **a: hpa.harmonious_fusion(**a, layer=1, num_layers=2)[0],
        lambda d: {
            **_pair(d),
            "safety_diagonal": d.tensor(d.c, positive=True),
            "task_diagonal": d.tensor(d.c, positive=True),
            "orthogonal": d.random.random() < 0.5,
        },
        _same("weight_prev"),
    ),
    "dense_update": Case(
        hpa.dense_update, _pair, lambda a: [(tuple(a["weight_prev"].shape), _stat(*a.values()))], looks=False
    ),
    "orthogonal_update": Case(hpa.orthogonal_update, _pair, _same("weight_prev")),
    "projection_scale": Case(hpa.projection_scale, _pair, lambda a: [((), None)]),
    "lora_fuse_": Case(
        hpa.lora_fuse_,
        lambda d: {"weight_prev": d.tensor(d.r, d.c), **_lora(d), "scaling": d.number(0.0, 4.0), **_units(d)},
        lambda a: [((), None)],
        changes=("weight_prev", "lora_a", "lora_b"),
    ),
    "lora_update": Case(
        hpa.lora_update,
        lambda d: {**_lora(d), "scaling": d.number(0.0, 4.0)},
        lambda a: [((a["lora_b"].shape[0], a["lora_a"].shape[1]), torch.float32)],
        looks=False,
    ),
    "merge_linearly": Case(
        hpa.merge_linearly,
        lambda d: {"weight": d.tensor(d.r, d.c), "reference": d.tensor(d.r, d.c), "share": d.number(0.0, 1.0)},
        _same("reference"),
    ),
    "merge_spherically": Case(
        hpa.merge_spherically,
        lambda d: {"weight": d.tensor(d.r, d.c), "reference": d.tensor(d.r, d.c), "share": d.number(0.0, 1.0)},
        _same("reference"),
    ),
    "merge_task_vectors": Case(
        lambda first, second, **settings: hpa.merge_task_vectors([first, second], **settings),
        lambda d: {
            "first": d.tensor(d.r, d.c),
            "second": d.tensor(d.r, d.c),
            "method": d.random.choice(("task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties")),
            "density": d.number(0.1, 1.0),
            "convention": d.random.choice(("peft", "mergekit")),
        },
        lambda a: [(tuple(a["first"].shape), _stat(a["first"], a["second"]))],
    ),
    "project_update_": Case(
        hpa.project_update_,
        lambda d: {"weight": d.tensor(d.r, d.c), "weight_prev": d.tensor(d.r, d.c), "retained": d.mask(d.c)},
        lambda a: [((), None)],
        changes=("weight",),
        looks=False,
    ),
    "project_lora_": Case(
        hpa.project_lora_,
        lambda d: {**_lora(d), "weight_prev": d.tensor(d.r, d.c)},
        lambda a: [((), None)],
        changes=("lora_b",),
        looks=False,
    ),
    "restore_columns_": Case(
        hpa.restore_columns_,
        lambda d: {"weight": d.tensor(d.r, d.c), "weight_prev": d.tensor(d.r, d.c), "retained": d.mask(d.c)},
        _same("weight"),
        changes=("weight",),
        looks=False,
    ),
    "freeze_columns_": Case(
        hpa.freeze_columns_,
        lambda d: {"trained": d.tensor(d.r, d.c), "origin": d.tensor(d.r, d.c), "retained": d.mask(d.c)},
        _same("trained"),
        changes=("trained",),
        looks=False,
    ),
    "null_space_projection_": Case(
        hpa.null_space_projection_,
        lambda d: {"trained": d.tensor(d.r, d.c), "origin": d.tensor(d.r, d.c), "basis": torch.eye(d.c)[:, : d.q]},
        lambda a: [],
        changes=("trained",),
        looks=False,
    ),
    "damp_directions_": Case(
        hpa.damp_directions_,
        lambda d: {
            "trained": d.tensor(d.r, d.c),
            "origin": d.tensor(d.r, d.c),
            "directions": torch.eye(d.c)[:, : d.q],
            "factors": torch.rand(min(d.q, d.c) + 1, generator=d.generator),
        },
        lambda a: [],
        changes=("trained",),
        looks=False,
    ),
    "adapter_gram": Case(
        hpa.adapter_gram,
        lambda d: {"lora_b": d.tensor(d.r, d.q), "scaling": 2.0},
        lambda a: [(2 * (a["lora_b"].shape[1],), F64)],
        looks=False,
    ),
    "energies_along": Case(
        hpa.energies_along,
        lambda d: {
            "rows": d.tensor(d.r, d.c),
            "directions": torch.eye(d.c)[:, : d.q],
            "origin": d.tensor(d.r, d.c),
        },
        lambda a: [((a["directions"].shape[1] + 1,), F64)],
        looks=False,
    ),
    "output_energy": Case(
        hpa.output_energy, lambda d: {"weight": d.tensor(d.r, d.c), "inputs": d.hessian()}, lambda a: [], looks=False
    ),
    "regression_fusion": Case(
        lambda weight_prev, weight_new: hpa.regression_fusion(weight_prev, weight_new, lambda rows: rows),
        _pair,
        lambda a: [(tuple(a["weight_prev"].shape), torch.float32)],
        looks=False,
    ),
    "zero_columns_": Case(
        hpa.zero_columns_,
        lambda d: {"tensor": d.tensor(d.r, d.c), "retained": d.mask(d.c)},
        _same("tensor"),
        changes=("tensor",),
        looks=False,
    ),
    "regression_map": Case(
        lambda task_hessian, kept_hessian, rows: hpa.regression_map(task_hessian, kept_hessian)(rows),
        lambda d: {"task_hessian": d.hessian(), "kept_hessian": d.hessian(), "rows": d.tensor(d.r, d.c)},
        _same("rows"),
        looks=False,
    ),
    "balance_coefficient": Case(hpa.balance_coefficient, _focus, lambda a: []),
    "partition_columns": Case(
        hpa.partition_columns,
        lambda d: {**_focus(d), "focus_percent": d.number(0.0, 100.0)},
        lambda a: [(tuple(a["safety_focus"].shape), BOOL)] * 2,
    ),
    "retained_columns": Case(
        hpa.retained_columns,
        lambda d: {**_focus(d), "percent": d.number(0.0, 100.0), "alpha": d.random.choice((None, 0.5))},
        lambda a: [(tuple(a["safety_focus"].shape), BOOL)],
    ),
    "top_columns": Case(
        hpa.top_columns,
        lambda d: {"score": d.tensor(d.c), "percent": d.number(0.0, 100.0)},
        lambda a: [(tuple(a["score"].shape), BOOL)],
    ),
    "dominant_subspace": Case(
        lambda hessian, energy: hpa.dominant_subspace(hessian, energy)[:, :0],
        lambda d: {"hessian": d.hessian(), "energy": d.number(0.0, 1.0)},
        lambda a: [((a["hessian"].shape[0], 0), _stat(a["hessian"]))],
    ),
    "joint_basis": Case(
        lambda first, second: hpa.joint_basis(first, second)[:, :0],
        lambda d: {"first": torch.eye(d.c)[:, : d.q], "second": torch.eye(d.c)[:, d.c - d.q :]},
        lambda a: [((a["first"].shape[0], 0), _stat(a["first"]))],
    ),
    "leave_subspace_": Case(
        hpa.leave_subspace_,
        lambda d: {"rows": d.tensor(d.r, d.c), "basis": torch.eye(d.c)[:, : d.q]},
        lambda a: [],
        changes=("rows",),
        looks=False,
    ),
    "surgeon_factor": Case(
        hpa.surgeon_factor,
        lambda d: {"hessian": d.hessian()},
        lambda a: [(tuple(a["hessian"].shape), F64)],
    ),
    "compensate": Case(
        compensate,
        lambda d: {
            "weight": d.tensor(d.r, d.c),
            "target": d.tensor(d.r, d.c),
            "moved": d.mask(d.r, d.c),
            "factor": d.factor(),
            "columns_at_once": d.random.choice((1, 2, 4)),
        },
        lambda a: [(tuple(a["weight"].shape), F64)],
    ),
    "safe_delta": Case(
        hpa.safe_delta,
        lambda d: {
            **_pair(d),
            "factor": d.factor(),
            "budget": d.random.choice((0.0, 0.1, 1e6, float("inf"))),
            "protected_percent": d.number(0.0, 100.0),
            "block_size": d.random.choice((1, 3, 2048)),
        },
        _edited,
    ),
    "model_tailor": Case(
        hpa.model_tailor,
        lambda d: {
            **_pair(d),
            "factor": d.factor(),
            "keep_percent": d.number(0.0, 100.0),
            "mix": d.number(0.0, 1.0),
            "block_size": d.random.choice((1, 3, 128)),
        },
        _edited,
    ),
    "orthogonality_penalty": Case(
        penalty.orthogonality_penalty,
        lambda d: {"lora_a": d.tensor(d.q, d.c), "earlier": d.tensor(d.r, d.c)},
        lambda a: [((), _stat(*a.values())), (tuple(a["lora_a"].shape), _stat(*a.values()))],
        looks=False,
    ),
    "norm_penalty": Case(
        penalty.norm_penalty,
        lambda d: {"factor": d.tensor(d.q, d.c)},
        lambda a: [((), _stat(a["factor"])), (tuple(a["factor"].shape), _stat(a["factor"]))],
        looks=False,
    ),
    "largest_update_entries": Case(
        penalty.largest_update_entries,
        lambda d: {**_lora(d), "percent": d.number(0.0, 100.0)},
        lambda a: [((a["lora_b"].shape[0], a["lora_a"].shape[1]), BOOL)],
    ),
    "protected_update_penalty": Case(
        lambda lora_a, lora_b, mask: penalty.protected_update_penalty(lora_a, lora_b, penalty.pack_mask(mask)),
        lambda d: {**_lora(d), "mask": d.mask(d.r, d.c)},
        lambda a: [((), None), (tuple(a["lora_a"].shape), None), (tuple(a["lora_b"].shape), None)],
        looks=False,
    ),
}


def spoil(arguments: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Replace one argument by something that does not belong there, or that is not finite."""
    name = draw.choice(list(arguments))
    value = arguments[name]
    if isinstance(value, Tensor) and draw.random() < 0.85:
        value = draw.choice(_SPOILT)(value.detach())
    elif isinstance(value, Tensor):
        value = draw.choice((None, "x", 3.0, [1.0], ()))
    elif isinstance(value, float):
        value = draw.choice((float("nan"), float("inf"), -1.0, 1e9, None, "x", True, torch.tensor(0.5)))
    else:
        value = draw.choice((None, 0, -3, 2.5, "x", []))
    return {**arguments, name: value}


def _with_bad(value: Tensor) -> Tensor:
    if not value.is_floating_point() or not value.numel():
        return value[..., :0] if value.dim() else value
    bad = value.clone(memory_format=torch.contiguous_format)
    bad.view(-1)[value.numel() // 2] = (float("nan"), float("inf"), -float("inf"))[value.numel() % 3]
    return bad


_SPOILT: tuple[Callable[[Tensor], Tensor], ...] = (
    _with_bad,
    _with_bad,
    lambda t: t.to(torch.int64) if t.dtype == BOOL else torch.zeros(t.shape, dtype=torch.int64),
    lambda t: t != 0,
    lambda t: t.to(torch.complex64),
    lambda t: t.to("meta"),
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: t[..., :0],
    lambda t: t[:0],
    lambda t: torch.cat([t, t[..., :1]], dim=-1) if t.dim() else t,
    lambda t: torch.cat([t, t]) if t.dim() else t,
    lambda t: t.sum(),
    lambda t: t.to_sparse() if t.dim() else t,
)


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
        return True
    return bool(value.detach().to_dense().isfinite().all())


def fault(case: Case, arguments: dict[str, Any], good: bool, extreme: bool) -> str | None:
    """What is wrong with how the function takes its arguments, if anything is.

    Args:
        case: the function.
        arguments: its arguments.
        good: nothing in them is spoilt, so that they fit one another.
        extreme: values anywhere in a dtype's range, where the functions of the optimizer step may overflow.
    """
    before = {name: value.detach().clone() for name, value in arguments.items() if _copied(value)}
    finite = all(map(_finite, arguments.values()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case.call(**arguments)
    except ValueError as error:
        if len(str(error)) > LONGEST:
            return f"a message of {len(str(error))} characters: {str(error)[:200]}"
        moved = [name for name in before if not _equal(arguments[name], before[name])]
        return f"ValueError, yet {moved} changed: {str(error)[:200]}" if moved else None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "hpa_lightning" in one.filename] or [
            frame
        ]
        return f"{type(error).__name__} in {frames[-1].name}, line {frames[-1].lineno}: {str(error)[:150]}"
    moved = [name for name in before if name not in case.changes and not _equal(arguments[name], before[name])]
    if moved:
        return f"{moved} changed"
    results = [item for item in (found if isinstance(found, tuple) else (found,)) if isinstance(item, Tensor)]
    own = [id(value) for value in arguments.values()]  # in-place functions may return what they were given
    if any(item.requires_grad and id(item) not in own for item in results):
        return "the result has a graph"
    changed = [arguments[name] for name in case.changes]
    if finite and (case.looks or not extreme) and not all(map(_finite, [*results, *changed])):
        return "not finite for finite arguments"
    if not finite and case.looks:
        return "took values that are not finite"
    if not good:
        return None
    for item, (shape, dtype) in zip(results, case.returns(arguments), strict=False):
        if tuple(item.shape) != shape or (dtype is not None and item.dtype != dtype):
            return f"returned {item.dtype} {tuple(item.shape)}; expected {dtype} {shape}"
    return None


def _copied(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta and not value.is_complex()


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(torch.nan_to_num(tensor.detach().to_dense().double()) for tensor in (one, other)))


def run(name: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Call a function ``count`` times; return what it took wrongly: the arguments in words, and what happened."""
    case, found = CASES[name], []
    for number in range(count):
        draw = random.Random(f"{seed}/{name}/{number}")
        good, tensors = draw.random() < 0.5, Draw(draw)
        arguments = case.make(tensors)
        if not good:
            arguments = spoil(arguments, draw)
        if (text := fault(case, arguments, good, tensors.extreme)) is not None:
            found.append((f"{seed}/{name}/{number}: {_words(arguments)}", text))
    return found


def _words(arguments: dict[str, Any]) -> str:
    told = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            known = _copied(value) and value.numel() and value.layout == torch.strided
            largest = f", largest {float(value.detach().double().abs().max()):.3g}" if known else ""
            value = f"{value.dtype} {tuple(value.shape)} on {value.device}{largest}"
        told.append(f"{name}={value}")
    return ", ".join(told)
