"""Batches of an evaluation are shared by the processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from hpa_lightning.callbacks.running import local_share


@pytest.mark.parametrize("kind", ["loader", "unbatched", "list"])
def test_every_batch_belongs_to_one_process(kind: str) -> None:
    data = list(range(11))
    loader = {
        "loader": DataLoader(data, batch_size=2),
        "unbatched": DataLoader(data, batch_size=None),
        "list": data,
    }[kind]
    shares = [
        [str(batch) for batch in local_share(loader, SimpleNamespace(world_size=3, global_rank=rank))]
        for rank in range(3)
    ]
    assert sorted(batch for share in shares for batch in share) == sorted(str(batch) for batch in loader)
    assert shares[0][0] == str(next(iter(loader))) and min(map(len, shares)) >= 2
