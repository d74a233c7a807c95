"""FSDP2: parameters, averages and optimiser state divided among the processes of a group; whole
again in checkpoints.

Imported where sharding is asked for only: it takes torch longer to import this than the rest of the
library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pcdm_lib.training.distributed import Group


def shard(
    network: nn.Module, blocks: Iterable[nn.Module], group: Group, device: torch.device
) -> None:
    """Divide a network's parameters among the processes of a group, block by block, so that at most
    one block is whole at a time.

    Args:
        network: changed in place.
        blocks: its parts, each of which is whole while it computes.
        group: the processes, more than one.
        device: where the network is.
    """
    # shards are cut from plain rows; the stubs of torch leave this argument out
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert group.handle is not None, "sharding takes a group of processes"
    mesh = DeviceMesh.from_group(group.handle, device.type)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def own_group(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser with what is not divided in a parameter group of its own, at the end: one
    kernel cannot take both kinds.

    Args:
        optimiser: of one parameter group; changed in place.

    Returns:
        The same optimiser.
    """
    (group,) = optimiser.param_groups
    divided = [p for p in group["params"] if isinstance(p, DTensor)]
    # the module's order: first its network, then its schedule
    rest = group["params"][len(divided) :]
    group["params"] = divided
    if rest:
        optimiser.add_param_group(
            {k: v for k, v in group.items() if k != "params"} | {"params": rest}
        )
    return optimiser


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state with whole tensors and one parameter group, as it is without sharding. Every
    process of the group must call.

    Args:
        optimiser: of divided parameters.

    Returns:
        A state as that of an optimiser that is not sharded.
    """
    state = optimiser.state_dict()
    first, *rest = state["param_groups"]
    return {
        "state": {
            i: {k: whole(v) for k, v in values.items()} for i, values in state["state"].items()
        },
        "param_groups": [
            first | {"params": first["params"] + [i for group in rest for i in group["params"]]}
        ],
    }


def load_optimiser_state(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Divide and load what `optimiser_state`, or an optimiser that is not sharded, has given.

    Args:
        optimiser: of divided parameters.
        state: with whole tensors.
    """
    (saved,) = state["param_groups"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.load_state_dict(
        {
            "state": {
                i: {k: like(v, p) for k, v in state["state"].get(i, {}).items()}
                for i, p in enumerate(parameters)
            },
            "param_groups": [
                saved | {"params": group["params"]}
                for group in optimiser.state_dict()["param_groups"]
            ],
        }
    )


def whole(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, put together from its shards where it is divided (then every process
    of the group must call).

    Args:
        tensor: divided or not.

    Returns:
        On the CPU.
    """
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor divided as `model` is, where that is divided and of the same shape.

    Args:
        tensor: whole.
        model: divided or not.

    Returns:
        The tensor, or this process's part of it.
    """
    if isinstance(model, DTensor) and model.shape == tensor.shape:
        return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
    return tensor


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of each tensor: its own memory, not a copy. Under no_grad only.

    Args:
        tensors: divided or not.

    Returns:
        One tensor each.
    """
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def clip(parameters: Iterable[nn.Parameter], limit: float, group: Group) -> Tensor:
    """`clip_grad_norm_` for parameters of which some are divided among the group; returns the norm
    of the whole gradient.

    Args:
        parameters: whose gradients are clipped in place.
        limit: largest norm.
        group: the processes.

    Returns:
        The norm before clipping, a scalar.
    """
    with torch.no_grad():
        grads = [p.grad for p in parameters if p.grad is not None]
        parts = local(g for g in grads if isinstance(g, DTensor))
        plain = [g for g in grads if not isinstance(g, DTensor)]
        square = _square(parts)
        group.add([square])
        norm = torch.sqrt(square + _square(plain).to(square.device))
        torch._foreach_mul_(parts + plain, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _square(tensors: Sequence[Tensor]) -> Tensor:
    return (
        torch.stack(torch._foreach_norm(list(tensors))).square().sum()
        if tensors
        else torch.zeros(())
    )
