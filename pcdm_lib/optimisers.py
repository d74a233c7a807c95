"""AdamW, and Muon for the kernels of the hidden convolutions, stepped as one optimiser.

Muon (K. Jordan et al., 2024; `torch.optim.Muon`) replaces a matrix's momentum by the orthogonal matrix nearest to it, so that all of its
directions move alike. A kernel (out, in, h, w) is the matrix (out, h w in). Biases, norms, everything that embeds the noise level, and the
convolutions at the network's entry and exit stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

OPTIMISERS = ("adamw", "muon")
_ENDS = ("entry", "exit")


def _matrix(kernel: Tensor) -> Tensor:
    """(out, in, h, w) -> (out, h w in): a view of a channels-last kernel. Muon does not care in which order the columns stand."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


class CombinedOptimiser:
    """Optimisers of disjoint parameters as one, with the part of torch's interface that a training loop needs.

    Args:
        parts: name -> optimiser. `torch.optim.Muon` takes matrices alone, so it may hold flattened views.
        views: (parameter, its flattened view): the view shares the parameter's memory and is given its gradient before each step.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], views: list[tuple[nn.Parameter, nn.Parameter]]):
        self.parts, self.views = dict(parts), list(views)
        self._check_memory()

    def _check_memory(self) -> None:
        if any(view.data_ptr() != parameter.data_ptr() for parameter, view in self.views):
            raise RuntimeError("a parameter was moved or cast after its optimiser was made: make the optimiser last")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)
        for parameter, _ in self.views:
            parameter.grad = None

    def step(self) -> None:
        self._check_memory()
        for parameter, view in self.views:
            view.grad = None if parameter.grad is None else _matrix(parameter.grad)
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


Optimiser = torch.optim.Optimizer | CombinedOptimiser


def _kernels(module: nn.Module) -> Iterator[Tensor]:
    """The kernels of the convolutions between a network's entry and its exit."""
    for name, child in module.named_modules():
        if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)) and name.rsplit(".", 1)[-1] not in _ENDS:
            yield child.weight


def make_optimiser(module: nn.Module, kind: str, learning_rate: float, muon_rate: float, betas: tuple[float, float],
                   weight_decay: float) -> Optimiser:
    """The optimiser of a module's parameters; every group keeps its rate as `initial_lr`, for a schedule to multiply.

    Args:
        kind: one of OPTIMISERS. learning_rate: AdamW's. muon_rate: Muon's, in spectral norm a step, times sqrt(out / in) where that is above 1.
        weight_decay: AdamW's alone.
    """
    if kind not in OPTIMISERS:
        raise ValueError(f"unknown optimiser {kind!r}: one of {', '.join(OPTIMISERS)}")
    kernels = list(_kernels(module)) if kind == "muon" else []
    chosen = {id(kernel) for kernel in kernels}
    rest = [p for p in module.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=betas, weight_decay=weight_decay) if rest else None
    if not kernels:
        if adamw is None:
            raise ValueError("nothing to train: the module has no parameters")
        optimiser: Optimiser = adamw
    else:
        views = [(kernel, nn.Parameter(_matrix(kernel.detach()))) for kernel in kernels]
        parts: dict[str, torch.optim.Optimizer] = {"muon": torch.optim.Muon([v for _, v in views], lr=muon_rate, weight_decay=0.0)}
        optimiser = CombinedOptimiser(parts | ({"adamw": adamw} if adamw is not None else {}), views)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser
