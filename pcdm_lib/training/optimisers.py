"""AdamW, and Muon for the kernels of the hidden convolutions, stepped as one optimiser.

Muon (K. Jordan and others, 2024) replaces a matrix's momentum by the orthogonal matrix nearest to
it, so that all of its directions move alike. A kernel (out, in, h, w) is the matrix (out, in h w).
Biases, norms, everything that embeds the noise level, and the convolutions at the network's entry
and exit stay with AdamW.

`torch.optim.Muon` does the same for matrices, in bfloat16, one after the other. Here it is float32
and all kernels of a shape at once: on a CPU without bfloat16 units that takes a fraction of the
time (`python -m benchmarks --parts variants`), and float32 keeps runs of one and of several
processes alike. The tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pcdm_lib.models.config import OPTIMISERS

_ENDS = ("entry", "exit")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for each U S V^T of (K, m, n): singular values between 0.7 and 1.2 where they
    were not far below the largest.

    Newton and Schulz's iteration with Jordan's coefficients, which trade exactness for a steep
    start.

    Args:
        matrices: (K, m, n).
        steps: of the iteration.

    Returns:
        (K, m, n).

    Example:
        >>> from pcdm_lib.training.optimisers import orthogonalise
        >>> g = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> s = torch.linalg.svdvals(orthogonalise(g))
        >>> bool((s > 0.5).all() and (s < 1.3).all())
        True
    """
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for parameters of two dimensions or more, flattened to (first,
    the rest).

    Source: K. Jordan and others, 2024.

    Args:
        params: to be trained.
        lr: length of a step as the largest singular value of the change, times sqrt(rows / columns)
            where that is above 1.
        momentum: of the gradients' average, in [0, 1).

    Raises:
        ValueError: for other numbers, or parameters of fewer than two dimensions.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95):
        if not lr > 0 or not 0 <= momentum < 1:
            raise ValueError(f"Muon needs lr > 0 and momentum in [0, 1), got {lr} and {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum})
        if any(p.ndim < 2 for group in self.param_groups for p in group["params"]):
            raise ValueError(
                "Muon takes matrices and kernels only: leave vectors and scalars to another "
                "optimiser"
            )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                self._step(same, shape, group["lr"], group["momentum"])

    def _step(
        self, same: list[nn.Parameter], shape: torch.Size, rate: float, momentum: float
    ) -> None:
        gradients = [cast(Tensor, p.grad) for p in same]
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in same]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = (
            orthogonalise(torch.stack([u.flatten(1) for u in ahead]))
            .unflatten(2, shape[1:])
            .unbind()
        )
        rows, columns = shape[0], shape[1:].numel()
        torch._foreach_add_(
            list[Tensor](same), updates, alpha=-rate * max(1.0, rows / columns) ** 0.5
        )


class CombinedOptimiser:
    """Optimisers of disjoint parameters as one, with the part of torch's interface that a training
    loop needs.

    Args:
        parts: optimisers by name.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]):
        self.parts = dict(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Args:
            set_to_none: rather than to zeros.
        """
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of every part."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts.

        Returns:
            One state a part, by name.
        """
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave.

        Args:
            state: by name of the part.
        """
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


Optimiser = torch.optim.Optimizer | CombinedOptimiser


def _kernels(module: nn.Module) -> Iterator[nn.Parameter]:
    """The kernels of the convolutions between a network's entry and its exit."""
    for name, child in module.named_modules():
        if (
            isinstance(child, (nn.Conv2d, nn.ConvTranspose2d))
            and name.rsplit(".", 1)[-1] not in _ENDS
        ):
            yield cast(nn.Parameter, child.weight)


def make_optimiser(
    module: nn.Module,
    kind: str,
    learning_rate: float,
    muon_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool = True,
) -> Optimiser:
    """The optimiser of a module's parameters; every group keeps its rate as `initial_lr`, for a
    schedule to multiply.

    Args:
        module: whose parameters are trained.
        kind: one of OPTIMISERS.
        learning_rate: AdamW's.
        muon_rate: Muon's.
        betas: AdamW's averages of gradients and squared gradients.
        weight_decay: AdamW's.
        fused: AdamW in one kernel, which divided parameters (FSDP) do not take.

    Returns:
        The optimiser.

    Raises:
        ValueError: for an unknown kind, or a module without parameters.
    """
    if kind not in OPTIMISERS:
        raise ValueError(f"unknown optimiser {kind!r}: one of {', '.join(OPTIMISERS)}")
    kernels = list(_kernels(module)) if kind == "muon" else []
    chosen = {id(kernel) for kernel in kernels}
    rest = [p for p in module.parameters() if id(p) not in chosen]
    if not kernels and not rest:
        raise ValueError("nothing to train: the module has no parameters")
    parts: dict[str, torch.optim.Optimizer] = {"muon": Muon(kernels, muon_rate)} if kernels else {}
    if rest:
        parts["adamw"] = torch.optim.AdamW(
            rest, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=fused
        )
    optimiser: Optimiser = CombinedOptimiser(parts) if kernels else parts["adamw"]
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser
