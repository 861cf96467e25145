"""Methods of merging and their numbers: what is refused, and tensors of any shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpa_lightning.merge import MergeSettings
from hpa_lightning.merge.merge_settings import METHODS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tie"}, "the method is 'tie'; expected one of linear.*did you mean 'ties'"),
        ({"ratio": 1.2}, "ratio is 1.2; expected the safety-tuned model's share"),
        ({"method": "ties", "weights": (1.0,)}, r"weights are \(1\.0,\); expected two numbers"),
        ({"method": "linear", "scale": 2.0}, "scale is 2.0, which linear does not use"),
        ({"method": "slerp", "seed": 3}, "seed is 3, which slerp does not use"),
        ({"method": "ties", "seed": 3}, "seed is 3, which ties does not use"),
        ({"method": "dare_linear", "majority_sign_method": "frequency"}, "which dare_linear does not use"),
        ({"method": "task_arithmetic", "density": 0.3}, "density is 0.3, which task_arithmetic does not use"),
        ({"method": "ties", "weights": (1.0, 1.0), "ratio": 0.2}, "ratio is 0.2, which ties with weights does not use"),
        ({"method": "ties", "density": 0.0}, "density"),
    ],
)
def test_settings_out_of_range_and_those_without_a_use_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergeSettings(**settings)


def test_ends_are_those_of_methods_that_merge_two_weights() -> None:
    assert [MergeSettings("linear", ratio).is_endpoint() for ratio in (0.0, 0.5, 1.0)] == [True, False, True]
    assert not MergeSettings("ties", 0.0).is_endpoint()
    assert MergeSettings("ties", 0.25).vector_weights == (0.75, 0.25)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_tensors_of_any_shape_come_back_in_theirs(method: Any, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    task, safety, base = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    merged = MergeSettings(method, 0.5).merge(task, safety, base, generator)
    assert merged.shape == shape and merged.dtype == torch.float32 and bool(torch.isfinite(merged).all())


def test_a_method_of_task_vectors_needs_the_base() -> None:
    weight = torch.ones(2)
    with pytest.raises(ValueError, match="ties merges what was added to a base; there is none"):
        MergeSettings("ties").merge(weight, weight, None, torch.Generator())
    same = MergeSettings("task_arithmetic", scale=0.7).merge(weight, weight, weight, torch.Generator())
    torch.testing.assert_close(same, weight)
