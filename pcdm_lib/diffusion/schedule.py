"""Noise schedules: gamma(t) = log(sigma_t^2 / alpha_t^2), increasing over t in [0, 1] (VDM, arXiv
2107.00630, Sect. 3.1).

alpha_t^2 = sigmoid(-gamma), sigma_t^2 = sigmoid(gamma), so alpha^2 + sigma^2 = 1 and the
signal-to-noise ratio is exp(-gamma).

Every schedule is `gamma_min + (gamma_max - gamma_min) * progress(t)` with progress(0) = 0 and
progress(1) = 1. In continuous time the bound depends on the two endpoints alone; the shape of
`progress` changes only the variance of its estimate. That is why a learned shape is trained to make
the variance small, and learned endpoints by the bound itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def alpha_sigma(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Scale of the signal and of the noise at log noise-to-signal ratio gamma.

    Source: VDM, Sect. 3.1.

    Args:
        gamma: of any shape.

    Returns:
        alpha and sigma, each of the shape of gamma; alpha^2 + sigma^2 = 1.

    Example:
        >>> from pcdm_lib.diffusion import alpha_sigma
        >>> alpha, sigma = alpha_sigma(torch.tensor(0.0))
        >>> round(float(alpha), 4), round(float(sigma), 4)
        (0.7071, 0.7071)
    """
    return torch.sqrt(torch.sigmoid(-gamma)), torch.sqrt(torch.sigmoid(gamma))


class NoiseLevel(NamedTuple):
    """gamma (N,), d gamma / dt (N,), and a function that every diffusion term passes through: it
    changes no value; a schedule whose shape is learned takes its gradient there."""

    gamma: Tensor
    slope: Tensor
    hand_on: Callable[[Tensor], Tensor]


def _as_it_is(term: Tensor) -> Tensor:
    return term


class _GradientOfVariance(torch.autograd.Function):
    """(progress, slope) as they are; the gradient that comes back is that of the squared term over
    its batch mean instead of the term's. The mean of the term does not depend on a schedule's
    shape; its variance does, and is least where the mean square is.

    `seen` is filled before the backward pass with the term of every image and its batch mean."""

    @staticmethod
    def forward(ctx, progress: Tensor, slope: Tensor, seen: list[Tensor]):
        ctx.seen = seen
        return progress.clone(), slope.clone()

    @staticmethod
    def backward(ctx, progress: Tensor, slope: Tensor):
        term, mean = ctx.seen
        weight = mean.clamp(min=1e-12)
        return progress * 2 * term / weight, slope * 2 * term / weight, None


class Schedule(nn.Module, ABC):
    """Base: endpoints, value and derivative over the `progress` that subclasses give.

    Args:
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1, above gamma_min.
        learn_endpoints: make both endpoints parameters, trained by the bound.

    Raises:
        ValueError: where the endpoints are not finite, or not in that order.
    """

    # of a figure an image; training in several processes puts the mean over all of them here
    batch_mean: Callable[[Tensor], Tensor] = staticmethod(torch.mean)

    def __init__(
        self, gamma_min: float = -13.3, gamma_max: float = 5.0, learn_endpoints: bool = False
    ):
        super().__init__()
        if not (math.isfinite(gamma_min) and math.isfinite(gamma_max) and gamma_min < gamma_max):
            raise ValueError(
                f"gamma_min < gamma_max must be finite numbers, got {gamma_min} and {gamma_max}"
            )
        self.learned_endpoints = learn_endpoints
        start, log_span = (
            torch.tensor(float(gamma_min)),
            torch.tensor(math.log(gamma_max - gamma_min)),
        )
        if learn_endpoints:
            self.start, self.log_span = nn.Parameter(start), nn.Parameter(log_span)
        else:
            self.register_buffer("start", start)
            self.register_buffer("log_span", log_span)

    @property
    def gamma_min(self) -> Tensor:
        """gamma at t = 0, a scalar."""
        return self.start

    @property
    def gamma_max(self) -> Tensor:
        """gamma at t = 1, a scalar."""
        return self.start + self.span

    @property
    def span(self) -> Tensor:
        """gamma_max - gamma_min, a scalar; positive."""
        return torch.exp(self.log_span)

    @abstractmethod
    def progress(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Fraction of the way from gamma_min to gamma_max at t, in [0, 1], and its derivative.

        Args:
            t: times in [0, 1], of any shape.

        Returns:
            Both of the shape of t.
        """

    def forward(self, t: Tensor) -> Tensor:
        """gamma(t), of the shape of t."""
        return self.start + self.span * self.progress(t)[0]

    def level(self, t: Tensor) -> NoiseLevel:
        """gamma(t), its derivative, and what the diffusion term is handed on by.

        Args:
            t: times (N,) in [0, 1].

        Returns:
            The noise level of every image.
        """
        progress, slope = self.progress(t)
        return NoiseLevel(self.start + self.span * progress, self.span * slope, _as_it_is)

    def derivative(self, t: Tensor) -> Tensor:
        """d gamma / dt, of the shape of t; positive.

        Args:
            t: times in [0, 1], of any shape.

        Returns:
            Of the shape of t.
        """
        return self.span * self.progress(t)[1]


class LinearSchedule(Schedule):
    """gamma linear in t; fixed, or with learned endpoints (the "learnable scalar" of VDM).

    Source: VDM, Sect. 3.1 and its appendix on the noise schedule.

    Args:
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1, above gamma_min.
        learn_endpoints: make both endpoints parameters, trained by the bound.

    Example:
        >>> schedule = pcdm.LinearSchedule(gamma_min=-13.0, gamma_max=5.0)
        >>> schedule(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [-13.0, -4.0, 5.0]
    """

    def progress(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)


class MonotoneSchedule(Schedule):
    """gamma by VDM's monotone network (its appendix on the noise schedule): l1(t) +
    l3(sigmoid(l2(l1(t)))) with positive weights, scaled to run from 0 to 1. Starts close to
    linear.

    Args:
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1, above gamma_min.
        learn_endpoints: make both endpoints parameters too, trained by the bound.
        hidden: width of the network.
        seed: of the hidden units' places.

    Example:
        >>> schedule = pcdm.MonotoneSchedule(-13.0, 5.0, hidden=16)
        >>> gamma = schedule(torch.linspace(0, 1, 100))
        >>> bool((gamma[1:] > gamma[:-1]).all())
        True
    """

    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        learn_endpoints: bool = False,
        hidden: int = 256,
        seed: int = 0,
    ):
        super().__init__(gamma_min, gamma_max, learn_endpoints)
        generator = torch.Generator().manual_seed(seed)
        # positive weights by softplus; the hidden units' centres start spread over [0, 1]
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.inner = nn.Parameter(torch.full((hidden,), 10.0))
        self.centre = nn.Parameter(torch.rand(hidden, generator=generator))
        self.outer = nn.Parameter(torch.full((hidden,), -5.0 - math.log(hidden)))

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope, inner, outer = F.softplus(self.slope), F.softplus(self.inner), F.softplus(self.outer)
        gate = torch.sigmoid(inner * (t[..., None] - self.centre))
        value = slope * t + (outer * gate).sum(-1)
        return value, slope + (outer * inner * gate * (1 - gate)).sum(-1)

    def progress(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self._raw(t)
        ends, _ = self._raw(
            torch.stack([torch.zeros_like(t.flatten()[0]), torch.ones_like(t.flatten()[0])])
        )
        span = ends[1] - ends[0]
        return (value - ends[0]) / span, slope / span

    def level(self, t: Tensor) -> NoiseLevel:
        """As every schedule's, with the gradient of the term's variance for the shape.

        Args:
            t: times (N,) in [0, 1].

        Returns:
            The noise level of every image.
        """
        if not torch.is_grad_enabled():
            return super().level(t)
        progress, slope = self.progress(t)
        seen: list[Tensor] = []
        progress, slope = _GradientOfVariance.apply(progress, slope, seen)

        def hand_on(term: Tensor) -> Tensor:
            seen[:] = [term.detach(), self.batch_mean(term.detach())]
            return term

        return NoiseLevel(self.start + self.span * progress, self.span * slope, hand_on)


class FittedSchedule(Schedule):
    """gamma piecewise linear in t, with times where the loss is: `fit` takes the loss measured at
    equally spaced gammas.

    The loss that is left is about level over t then, which is what the learned shape of VDM aims
    at, from a few forward passes instead of a gradient. Starts linear. Between fits it is fixed, so
    it brings no bias: importance sampling of the noise levels.

    Args:
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1, above gamma_min.
        bins: pieces that gamma is linear in.

    Example:
        >>> schedule = pcdm.FittedSchedule(-13.0, 5.0, bins=2)
        >>> schedule.fit(torch.tensor([3.0, 1.0]))  # more error in the lower half
        >>> half = float((schedule(torch.linspace(0, 1, 1001)) < -4).float().mean())
        >>> round(half, 2)  # so more times are there
        0.73
    """

    # share of the times that stays uniform over gamma, so that no noise level goes unseen
    FLOOR = 0.1
    nodes: Tensor

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, bins: int = 32):
        super().__init__(gamma_min, gamma_max)
        self.bins = bins
        # the times at which gamma is k / bins of its way
        self.register_buffer("nodes", torch.linspace(0.0, 1.0, bins + 1))

    @torch.no_grad()
    def fit(self, loss: Tensor) -> None:
        """Set the shape from the mean squared error in each of `bins` equal intervals of gamma.

        Args:
            loss: (bins,), none negative; `Scale.noise_profile` measures it.

        Raises:
            ValueError: for another number of errors, or one that is negative or not finite.
        """
        if (
            loss.shape != (self.bins,)
            or not bool(torch.isfinite(loss).all())
            or bool((loss < 0).any())
        ):
            raise ValueError(f"fit takes {self.bins} finite errors, none negative, got {loss}")
        loss = loss.double().clamp(min=1e-12)
        density = (1 - self.FLOOR) * loss / loss.mean() + self.FLOOR
        nodes = F.pad(density.cumsum(0) / density.sum(), (1, 0))
        nodes[-1] = 1.0
        self.nodes.copy_(nodes)

    def progress(self, t: Tensor) -> tuple[Tensor, Tensor]:
        nodes = self.nodes.to(t.dtype)
        bin_ = (torch.searchsorted(nodes, t.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        width = nodes[bin_ + 1] - nodes[bin_]
        return (bin_ + (t - nodes[bin_]) / width) / self.bins, 1 / (self.bins * width)


SCHEDULES = ("linear", "learned_linear", "monotone", "fitted")


def make_schedule(
    kind: str, gamma_min: float, gamma_max: float, learn_endpoints: bool = False
) -> Schedule:
    """The schedule of a kind.

    Args:
        kind: "linear" (fixed), "learned_linear" (both endpoints learned), "monotone" (learned
            shape, endpoints as asked) or "fitted" (fixed endpoints, shape from the measured loss).
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1, above gamma_min.
        learn_endpoints: of "monotone".

    Returns:
        The schedule.

    Raises:
        ValueError: for another kind, or learned endpoints that the kind does not have.
    """
    if kind == "linear":
        if learn_endpoints:
            raise ValueError("a linear schedule with learned endpoints is called 'learned_linear'")
        return LinearSchedule(gamma_min, gamma_max)
    if kind == "learned_linear":
        return LinearSchedule(gamma_min, gamma_max, learn_endpoints=True)
    if kind == "fitted":
        if learn_endpoints:
            raise ValueError("a fitted schedule has fixed endpoints: use 'monotone' to learn them")
        return FittedSchedule(gamma_min, gamma_max)
    if kind == "monotone":
        return MonotoneSchedule(gamma_min, gamma_max, learn_endpoints)
    raise ValueError(f"unknown schedule {kind!r}: one of {', '.join(SCHEDULES)}")


def stratified_times(
    n: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """n times in [0, 1), one in each of n equal strata around one common random offset, in order
    (the low-discrepancy sampler of VDM's appendix, "antithetic" times). Each of them alone is
    uniform.

    Args:
        n: how many, at least 1.
        generator: of the offset.
        device: of the times.
        dtype: of the times.

    Returns:
        (n,), in increasing order.

    Raises:
        ValueError: for n below 1.

    Example:
        >>> from pcdm_lib.diffusion import stratified_times
        >>> t = stratified_times(4, torch.Generator().manual_seed(0))
        >>> (4 * t).floor().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if n < 1:
        raise ValueError(f"need at least one time, got n={n}")
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    # divided after the sum, clipped just below 1, so that rounding cannot yield t = 1
    times = (torch.arange(n, dtype=torch.float64, device=device) + offset) / n
    return times.to(dtype).clamp(max=1.0 - torch.finfo(dtype).eps)
