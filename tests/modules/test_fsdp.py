"""Gradients of FSDP2 are means, also where torch sums them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from hpa_lightning.callbacks.processes import warn_of_summed_gradients
from hpa_lightning.modules import fsdp


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of one process, over gloo."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(mesh: DeviceMesh) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model(torch.ones(2, 3)).square().sum().backward()
    return [parameter.grad.to_local().clone() for parameter in model.parameters()]  # type: ignore[union-attr]


def test_sums_are_divided_once_and_means_stay(mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(sharded(mesh))
    mean, summed = sharded(mesh), sharded(mesh)
    fsdp.mean_gradients_(mean)  # this process's gradient is its mean
    assert all(map(torch.equal, gradients(mean), expected))
    module, trainer = L.LightningModule(), SimpleNamespace(world_size=2)
    module.model = summed
    with monkeypatch.context() as patched:  # two processes, and torch 2.7 over gloo
        patched.setattr(fsdp, "_sums_for_means", lambda mesh: True)
        patched.setattr(DeviceMesh, "size", lambda self, *_: 2)
        with pytest.warns(UserWarning, match=r"sums its gradients .* 2 times those of one process. Call .*mean_grad"):
            warn_of_summed_gradients(trainer, module)  # type: ignore[arg-type]
        for _ in range(2):  # divided once, however often it is called
            fsdp.mean_gradients_(summed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_summed_gradients(trainer, module)  # type: ignore[arg-type]
    assert all(torch.equal(2 * half, whole) for half, whole in zip(gradients(summed), expected, strict=True))


def test_a_hook_of_the_user_s_stays_and_whole_models_are_left_alone(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = sharded(mesh), []
    for module in model.modules():
        module.set_all_reduce_hook(lambda gradient: seen.append(gradient.numel()))  # type: ignore[operator]
    monkeypatch.setattr(fsdp, "_sums_for_means", lambda mesh: True)
    fsdp.mean_gradients_(model)
    gradients(model)
    assert seen == [10, 16]  # of the second and of the first layer
    assert not fsdp.sums_gradients(nn.Linear(2, 2))
