"""What is held of protected inputs: their directions once, the same after a checkpoint, and the action of an update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.foreign_module import foreign_module
from support.method_fits import OPTIMIZERS, calibration_data, fit
from torch import Tensor

from hpa_lightning.callbacks import NullSpaceProjection
from hpa_lightning.callbacks.hessian_memory import Form
from hpa_lightning.callbacks.protected_spectra import ProtectedSpectra
from hpa_lightning.functional import InputSketch, energies_along, input_spectrum


def sketch_of(columns: int, rank: int, decay: float) -> InputSketch:
    rng = torch.Generator().manual_seed(columns)
    sketch = InputSketch(columns, rank)
    scale = torch.arange(1, columns + 1) ** -decay
    mixed = torch.linalg.qr(torch.randn(columns, columns, generator=rng)).Q
    sketch.update((torch.randn(3 * columns, columns, generator=rng) * scale) @ mixed)
    return sketch


def tensors_of(held: Any) -> Iterator[Tensor]:
    """All tensors that an object holds, however deep."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for one in held.values():
            yield from tensors_of(one)
    elif type(held).__module__.startswith("hpa_lightning"):
        for one in vars(held).values():
            yield from tensors_of(one)


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("columns", "rank"), [(300, 192), (700, 64), (48, 48)])
def test_directions_that_a_half_precision_copy_spans_count_an_updates_action(
    columns: int, rank: int, decay: float
) -> None:
    sketch = sketch_of(columns, rank, decay)
    exact, spectra = input_spectrum(sketch), ProtectedSpectra()
    spectra.take("input", sketch)
    held = spectra["input"]
    eye = torch.eye(held.directions.shape[1], dtype=torch.float64)
    wide = held.directions.double()
    assert float((wide.T @ wide - eye).abs().max()) < 1e-6
    assert held.trace == pytest.approx(sketch.trace, rel=1e-6)
    vectors, outside = exact.directions.double(), exact.energies[-1]
    protected = (vectors * (exact.energies[:-1] - outside)) @ vectors.T + outside * torch.eye(columns)
    update = torch.randn(40, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = float(((update @ protected) * update).sum())
    for left in (0, 1, 5, rank // 2):
        gone = wide[:, :left]
        rest = update - (update @ gone) @ gone.T
        counted = float((energies_along(rest.float(), held.directions) * held.energies).sum())
        done = float(((rest @ protected) * rest).sum())
        assert counted == pytest.approx(done, rel=2e-3, abs=1e-5 * whole)


@pytest.mark.parametrize("columns", [300, 2000])
def test_a_checkpoint_gives_the_same_directions_bit_for_bit(columns: int) -> None:
    sketch, spectra = sketch_of(columns, 64, 1.0), ProtectedSpectra()
    spectra.take("input", sketch)
    state = spectra.state_dict()
    assert state["input"]["directions"].dtype == torch.bfloat16
    again = ProtectedSpectra.from_state(state)
    assert torch.equal(again["input"].directions, spectra["input"].directions)
    assert torch.equal(again["input"].energies, spectra["input"].energies)
    assert torch.equal(again.state_dict()["input"]["directions"], state["input"]["directions"])


def test_whole_matrices_are_saved_as_directions_in_full() -> None:
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    spectra = ProtectedSpectra()
    spectra.take("input", inputs.T @ inputs)
    state = spectra.state_dict()
    assert state["input"]["directions"].dtype == torch.float32
    assert torch.equal(ProtectedSpectra.from_state(state)["input"].directions, spectra["input"].directions)


def test_older_checkpoints_hold_what_directions_were_taken_from() -> None:
    sketch = sketch_of(100, 20, 1.0)
    sketch.round_()
    whole = torch.diag(torch.arange(1.0, 6.0))
    found = ProtectedSpectra.from_state({"sketch": sketch.state_dict(), "whole": whole})
    of_rows = input_spectrum(sketch)
    assert torch.equal(found["sketch"].energies, of_rows.energies)
    assert float((found["sketch"].directions * of_rows.directions).sum(0).abs().min()) > 1 - 1e-5
    assert torch.equal(found["whole"].energies, input_spectrum(whole).energies)


class Held(L.Callback):
    """Counts the bytes of a budget's tensors during the task, in memory and in a checkpoint."""

    def __init__(self, projection: NullSpaceProjection) -> None:
        self.projection = projection
        self.columns: list[int] = []
        self.layers = self.bytes = self.saved = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        output = self.projection.output
        assert output is not None
        widths = {linear.name: linear.in_features for linear in output.layers}
        self.columns = [widths[name] for name in dict.fromkeys(output._first.values())]
        self.layers = len(widths)
        parts = [one for name, one in vars(output).items() if name not in ("owner", "layers", "memory")]
        found = {one.data_ptr(): one for part in parts for one in tensors_of(part)}
        self.bytes = sum(one.numel() * one.element_size() for one in found.values())
        self.saved = sum(one.numel() * one.element_size() for one in tensors_of(output.state_dict()))


@pytest.mark.parametrize("form", ["sketch", "exact"])
def test_nothing_is_held_beside_the_directions(form: Form, tmp_path: Path) -> None:
    projection = NullSpaceProjection(form=form, rank=4, budget=0.05, **calibration_data())
    held = Held(projection)
    fit(foreign_module(OPTIMIZERS["adamw_decay"], True), [projection, held], tmp_path)
    sizes = [(columns, 4 if form == "sketch" else columns) for columns in held.columns]
    table = 8 * held.layers * (max(k for _, k in sizes) + 1)  # energies of each layer; what it has left; its budget
    energies = sum(8 * (k + 1) for _, k in sizes)
    turns = sum(4 * k * k for _, k in sizes) if form == "sketch" else 0
    assert (
        held.columns and held.bytes <= sum(4 * c * k for c, k in sizes) + turns + energies + 2 * table + 8 * held.layers
    )
    assert held.saved == sum((2 if form == "sketch" else 4) * c * k for c, k in sizes) + energies + table
