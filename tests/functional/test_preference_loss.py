"""Preference losses against closed forms in NumPy, float64; log-probabilities against loops over tokens."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from hpa_lightning.functional import answer_log_probabilities, preference_loss
from hpa_lightning.functional.preference_loss import PreferenceLoss

BETA, SMOOTHING = 0.3, 0.1


def sigma(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def closed_form(loss: str, c: Any, r: Any, n: Any, m: Any, e: float) -> Any:
    x = BETA * (c - r)
    return {
        "sigmoid": -(1 - e) * np.log(sigma(x)) - e * np.log(sigma(-x)),
        "robust": (-(1 - e) * np.log(sigma(x)) + e * np.log(sigma(-x))) / (1 - 2 * e),
        "ipo": (c / n - r / m - 1 / (2 * BETA)) ** 2,
        "hinge": np.maximum(0, 1 - x),
        "apo_zero": 1 - sigma(BETA * c) + sigma(BETA * r),
        "apo_down": sigma(BETA * c) + 1 - sigma(x),
        "bco_pair": -np.log(sigma(BETA * c)) - np.log(sigma(-BETA * r)),
        "nca_pair": -np.log(sigma(BETA * c)) - np.log(sigma(-BETA * c)) / 2 - np.log(sigma(-BETA * r)) / 2,
    }[loss]


@pytest.mark.parametrize("loss", get_args(PreferenceLoss))
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_losses(loss: Any, smoothing: float) -> None:
    draw = np.random.default_rng(0)
    c, r = draw.normal(size=7), draw.normal(size=7) * 3
    n, m = draw.integers(1, 9, size=7), draw.integers(1, 9, size=7)
    given = [torch.tensor(value) for value in (c, r)]
    tokens = [torch.tensor(value) for value in (n, m)]
    if smoothing and loss not in ("sigmoid", "robust"):
        with pytest.raises(ValueError, match=r"label_smoothing is 0.1 with the loss"):
            preference_loss(*given, loss, BETA, smoothing, *tokens)
        return
    found = preference_loss(*given, loss, BETA, smoothing, *tokens)
    np.testing.assert_allclose(found.numpy(), closed_form(loss, c, r, n, m, smoothing), rtol=1e-12)


def test_wrong_settings_are_told() -> None:
    one = torch.zeros(2)
    for arguments, message in (
        ({"loss": "dpo"}, "the preference loss is 'dpo'; expected one of sigmoid, ipo"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0.5; expected a share in \[0, 0.5\)"),
        ({"loss": "ipo"}, "expected chosen_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            preference_loss(one, one, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        preference_loss(one, torch.zeros(3))
    with pytest.raises(ValueError, match="expected \\(sequences, tokens, vocabulary\\)"):
        answer_log_probabilities(torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_probabilities_are_sums_over_the_answer_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    labels[0, :3] = labels[1, 4:] = labels[2, 1:] = -100  # prompt; padding; a first token, which none predicts
    total, tokens = answer_log_probabilities(logits, labels)
    for row in range(3):
        values = logits[row].double().numpy()
        expected = sum(
            values[place - 1, labels[row, place]] - np.log(np.exp(values[place - 1]).sum())
            for place in range(1, 6)
            if labels[row, place] != -100
        )
        assert float(total[row]) == pytest.approx(float(expected), rel=1e-6)
    assert tokens.tolist() == [3, 3, 0] and total.dtype == torch.promote_types(dtype, torch.float32)


def test_the_gradient_reaches_the_answer_s_logits_alone() -> None:
    logits = torch.randn(1, 5, 7, requires_grad=True)
    labels = torch.tensor([[-100, -100, 3, 4, -100]])
    answer_log_probabilities(logits, labels)[0].sum().backward()
    assert logits.grad is not None
    assert [bool(logits.grad[0, place].any()) for place in range(5)] == [False, True, True, False, False]
