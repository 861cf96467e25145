"""Parameters whose rows are spread over processes (FSDP2): reading, writing and summing over them.

FSDP2 (``torch.distributed.fsdp.fully_shard``) turns every parameter into a DTensor sharded along dim 0, the output
features. Column masks are therefore the same on every process, and what a layer does to its inputs can be changed row
by row; only sums over a whole weight need communication. Plain tensors pass through every function here unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's rows, sharing their memory with ``tensor``; the tensor itself if it is whole."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered again on every process, all of which have to call this; or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_like(value: Tensor, like: Tensor) -> Tensor:
    """The rows of the whole ``value`` that this process holds of ``like``, as ``like`` is held; no communication."""
    if not isinstance(like, DTensor):
        return value
    first, count = _local_range(like)
    return DTensor.from_local(
        value[first : first + count].contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


@torch.no_grad()
def assign_(tensor: Tensor, value: Tensor) -> None:
    """Write the whole ``value`` into ``tensor``; each process writes its own rows, no communication."""
    if isinstance(tensor, DTensor):
        first, count = _local_range(tensor)
        value = value[first : first + count]
    local = local_tensor(tensor)
    if local.data_ptr() != value.data_ptr() or local.dtype != value.dtype:  # else it was computed where it belongs
        local.copy_(value)


def sum_over_rows(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor] | None:
    """What sums a tensor over the processes that share the rows of ``tensors``; ``None`` where they are whole.

    Raises:
        ValueError: some are whole and others are not, or they are spread over different processes.
    """
    meshes = {tensor.device_mesh if isinstance(tensor, DTensor) else None for tensor in tensors}
    if len(meshes) != 1:
        raise ValueError(
            f"the tuned layers are spread over the processes in {len(meshes)} ways; expected all of them whole, or "
            "all of them sharded by fully_shard over one mesh."
        )
    mesh = meshes.pop()
    if mesh is None:
        return None

    def reduce(sums: Tensor) -> Tensor:
        sums = sums.clone()
        torch.distributed.all_reduce(sums, group=mesh.get_group())
        return sums

    return reduce


@torch.no_grad()
def gather_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The whole of each of several tensors of one dtype, with one communication for all of them."""
    if not tensors or not isinstance(tensors[0], DTensor):
        return list(tensors)
    mesh = tensors[0].device_mesh
    # Each process's rows, padded to the most that one of them holds.
    padded = []
    for tensor in tensors:
        local = local_tensor(tensor)
        most = -(-tensor.shape[0] // mesh.size())
        padded.append(torch.cat([local, local.new_zeros(most - local.shape[0], *local.shape[1:])]).flatten())
    buffer = torch.cat(padded)
    gathered = buffer.new_empty(mesh.size() * buffer.numel())
    torch.distributed.all_gather_into_tensor(gathered, buffer, group=mesh.get_group())
    result, start = [], 0
    for tensor, part in zip(tensors, padded, strict=True):
        rows = gathered.view(mesh.size(), -1)[:, start : start + part.numel()].reshape(-1, *tensor.shape[1:])
        result.append(rows[: tensor.shape[0]])
        start += part.numel()
    return result


def check_rows_sharded(name: str, tensor: Tensor) -> None:
    """Refuse a DTensor that is not spread by rows over one dimension of processes.

    Raises:
        ValueError: it is not.
    """
    if isinstance(tensor, DTensor) and tuple(tensor.placements) != (Shard(0),):
        raise ValueError(
            f"{name} is a DTensor with placements {tensor.placements}; expected rows over one mesh dimension, as "
            "fully_shard makes it. Tensor parallelism and hybrid sharding are not supported."
        )


def shard_model_(model: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    """Spread the parameters over the processes of ``mesh``: each block by itself, the rest as one (FSDP2).

    Gradients are means over the processes (:func:`mean_gradients_`).
    """
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)
    mean_gradients_(model)


def mean_gradients_(model: nn.Module) -> None:
    """Divide the gradients of what ``fully_shard`` has spread where torch sums them; every process has to call this.

    FSDP2 asks for the mean over the processes. Over gloo some versions of torch return the sum (2.7 does;
    https://github.com/pytorch/pytorch/issues/162338), so that a step is as many times too large as there are
    processes. Modules whose gradients are means already, or have a hook of their own, stay as they are.
    """
    for module, size in _summing(model):

        def divide(gradient: Tensor, size: int = size) -> None:
            gradient.div_(size)

        module.set_all_reduce_hook(divide)


def sums_gradients(model: nn.Module) -> bool:
    """Whether FSDP2 gives sums of gradients where it should give means; every process has to call this."""
    return bool(_summing(model))


def _summing(model: nn.Module) -> list[tuple[FSDPModule, int]]:
    """The sharded modules whose gradients are sums, with the number of processes that share each."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    parameters = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    meshes = dict.fromkeys(parameter.device_mesh for parameter in parameters)
    if len(meshes) != 1 or not _sums_for_means(mesh := next(iter(meshes))):  # several are refused elsewhere
        return []
    # A hook has a setter in torch, and no getter.
    state = [(module, module._get_fsdp_state()._fsdp_param_group) for module in sharded]
    return [(module, mesh.size()) for module, group in state if group is not None and group._all_reduce_hook is None]


def _sums_for_means(mesh: DeviceMesh) -> bool:
    """Whether the processes' sum comes where FSDP2 asks for their mean."""
    if mesh.ndim != 1 or torch.distributed.get_backend(group := mesh.get_group()) != "gloo":
        return False
    found = torch.zeros(1)
    torch.distributed.reduce_scatter_tensor(found, torch.ones(mesh.size()), torch.distributed.ReduceOp.AVG, group)
    result: bool = mesh.size() > 1 and float(found) == mesh.size()
    return result


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of ``module`` are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def unshard_root_(model: nn.Module) -> None:
    """Gather the parameters outside the blocks, for code that does not start with the model's forward."""
    if isinstance(model, FSDPModule):
        model.unshard()


def reshard_(root: nn.Module) -> None:
    """Give up what a forward pass has gathered, so that the parameters in the modules are the sharded ones."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local_range(tensor: DTensor) -> tuple[int, int]:
    """First row and number of rows of this process."""
    most = -(-tensor.shape[0] // tensor.device_mesh.size())
    return tensor.device_mesh.get_local_rank() * most, tensor.to_local().shape[0]


def cpu_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached whole copies on the CPU, for checkpoints; every process has to call it."""
    return {name: full_tensor(tensor.detach()).to("cpu", copy=True) for name, tensor in tensors.items()}
