"""The embedded module's schedule, by hand."""

from __future__ import annotations

import pytest
import torch

from hpa_lightning.modules.nano_module import schedule_of


def test_the_rate_warms_up_over_ten_steps_and_falls_to_zero_at_the_last() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = schedule_of(optimizer, 40), []
    for _ in range(41):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [2.0 * min(1.0, (step + 1) / 10) * (1 - step / 40) for step in range(41)]
    assert rates == pytest.approx(expected) and rates[40] == 0.0 and max(rates) == rates[9]
