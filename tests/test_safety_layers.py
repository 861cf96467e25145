"""The finder of safety layers: planted gaps, pairs in loops, and hidden states of real architectures."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from support.tiny_mllms import tiny_llava

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.modules import MLLMModule
from hpa_lightning.safety_layers import cosine_gap, find_safety_layers, safety_layer_range


def planted(layers: int = 12, opens: int = 5, done: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Malicious states turn away from the normal ones between layers ``opens`` and ``done`` (from 1)."""
    generator = torch.Generator().manual_seed(0)
    share = ((torch.arange(1, layers + 1) - (opens - 1)) / (done - opens + 1)).clamp(0, 1)[:, None]
    common, away = torch.zeros(40), torch.zeros(40)
    common[0], away[1] = 5.0, 5.0
    noise = lambda n: 0.01 * torch.randn(n, layers, 40, generator=generator)  # noqa: E731
    return noise(16) + common, noise(11) + (1 - share) * common + share * away


def test_gap_against_loops_over_pairs() -> None:
    normal, malicious = planted()
    gap = cosine_gap(normal.to(torch.bfloat16), malicious.to(torch.bfloat16))
    a, b = (x.to(torch.bfloat16).double().numpy() for x in (normal, malicious))
    cosine = lambda u, v: float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))  # noqa: E731
    for layer in range(a.shape[1]):
        same = np.mean([cosine(a[i, layer], a[j, layer]) for i, j in combinations(range(len(a)), 2)])
        other = np.mean([cosine(a[i, layer], b[j, layer]) for i, j in product(range(len(a)), range(len(b)))])
        assert gap.normal_normal[layer] == pytest.approx(same, abs=1e-12)
        assert gap.normal_malicious[layer] == pytest.approx(other, abs=1e-12)
        assert gap.degrees[layer] == pytest.approx(math.degrees(math.acos(other) - math.acos(same)), abs=1e-9)


@pytest.mark.parametrize(("opens", "done"), [(5, 8), (2, 3), (1, 6), (9, 12)])
def test_a_planted_range_is_found(opens: int, done: int) -> None:
    gap = cosine_gap(*planted(opens=opens, done=done))
    first, last = safety_layer_range(gap.degrees)
    assert (first, last) == (opens, done)
    assert safety_layer_range([100 * value for value in gap.degrees]) == (first, last)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ([5.0], (1, 1)),
        ([3.0, 2.0, 1.5], (1, 1)),
        ([0.0, 0.0, 9.0], (3, 3)),
        ([-1.0, 4.0, 0.2, 5.0, 10.0], (4, 5)),
        ([0.0, 2.0, 9.0, 0.0, 10.0], (2, 3)),
    ],
)
def test_the_rule(gap: list[float], expected: tuple[int, int]) -> None:
    assert safety_layer_range(gap) == expected


@pytest.mark.parametrize("gap", [[], [0.0, 0.0], [-1.0], [1.0, float("nan")]])
def test_no_gap_is_refused(gap: list[float]) -> None:
    with pytest.raises(ValueError, match="gap"):
        safety_layer_range(gap)


def test_wrong_hidden_states_are_refused() -> None:
    states = torch.ones(3, 2, 4)
    for normal, malicious in [(states[:1], states), (states, states[:0]), (states, states[:, :1]), (states[0], states)]:
        with pytest.raises(ValueError, match="hidden states of shapes"):
            cosine_gap(normal, malicious)
    with pytest.raises(ValueError, match="zero or not finite"):
        cosine_gap(states, states * 0)
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        safety_layer_range([1.0], 0.9, 0.1)


def test_finder_finds_the_block_that_reacts_to_a_word() -> None:
    model, processor = tiny_llava(layers=4)
    module = MLLMModule.from_objects(model, processor)
    collator = MLLMCollator(processor)
    normal = [Record(f"n{i}", user_turn(f"tell me of the {i} red circle")) for i in range(6)]
    malicious = [Record(f"m{i}", user_turn(f"tell me of the {i} red circle")) for i in range(5)]

    wanted: list[bool] = []

    class Marked(MLLMCollator):
        def generate(self, records: list[Record]) -> dict:
            wanted[:] = [record.id.startswith("m") for record in records]
            return super().generate(records)

    away = 20 * torch.nn.functional.one_hot(torch.tensor(3), 32)

    def react(inner: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + torch.tensor(wanted)[:, None, None] * away

    handle = model.model.language_model.layers[2].register_forward_hook(react)
    found = find_safety_layers(module, Marked(processor), normal, malicious, batch_size=4)
    handle.remove()
    assert (found.first, found.last) == (3, 3)
    assert len(found.gap.degrees) == 4 and found.gap.degrees[2] > 20 and abs(found.gap.degrees[1]) < 3
    with pytest.raises(ValueError, match="1 normal and 5 malicious"):
        find_safety_layers(module, collator, normal[:1], malicious)
