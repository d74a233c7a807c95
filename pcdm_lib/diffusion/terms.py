"""One scale as a variational diffusion model: forward process, the three terms of its bound, a
reverse step.

Everything here works in the orthonormal coordinates y of one scale (maps/hierarchical.py), y = gain
* z + shift for its integers z, with z_t = alpha_t y + sigma_t eps and eps of unit variance in every
  coordinate. The denoiser is an argument,

    eps_hat = denoiser(z_t, gamma_t, coarse)        z_t (N, ...), gamma_t (N,), coarse integers (N, C, h, w) or None,

so a network, the exact posterior mean of a small source or a constant will do. All terms are in
nats, one an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import Schedule, alpha_sigma
from pcdm_lib.maps.lattice import scale_draw, scale_log_prob
from pcdm_lib.maps.scales import ScaleSpec

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Terms(NamedTuple):
    """The bound of one scale, -log P(z | coarser) <= prior + diffusion + reconstruction; each (N,)
    nats, or with `per_coefficient` the share of every coordinate, (N, bands*C, h, w)."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


def _per_image(x: Tensor) -> Tensor:
    return x.flatten(1).sum(dim=1)


def _broadcast(v: Tensor) -> Tensor:
    return v.reshape(-1, 1, 1, 1)


def add_noise(y: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
    """z_t = alpha y + sigma eps; gamma (N,)."""
    alpha, sigma = alpha_sigma(_broadcast(gamma))
    return alpha * y + sigma * eps


def prior_term(y: Tensor, schedule: Schedule, per_coefficient: bool = False) -> Tensor:
    """KL( q(z_1 | y) || N(0, I) ) in nats, (N,), or of every coordinate."""
    alpha, sigma = alpha_sigma(schedule.gamma_max.to(y.dtype))
    # sigma^2 = 1 - alpha^2, so the variance part is -(alpha^2 + log(1 - alpha^2)) / 2, tiny and
    # best kept in this form
    terms = (alpha * y) ** 2 / 2 - (alpha**2 + torch.log1p(-(alpha**2))) / 2
    return terms if per_coefficient else _per_image(terms)


def reconstruction_term(
    spec: ScaleSpec,
    schedule: Schedule,
    y: Tensor,
    z: Tensor,
    coarse: Tensor | None,
    eps: Tensor,
    per_coefficient: bool = False,
) -> Tensor:
    """-log P(z | z_0, coarser) at one draw z_0 = alpha_0 y + sigma_0 eps, in nats, (N,), or of
    every coordinate."""
    alpha, sigma = alpha_sigma(schedule.gamma_min.double())
    z_0 = alpha * y.double() + sigma * eps.double()
    return -scale_log_prob(spec, z_0, alpha, sigma, z, coarse, per_coefficient).to(y.dtype)


def diffusion_term(
    denoiser: Denoiser,
    schedule: Schedule,
    y: Tensor,
    coarse: Tensor | None,
    t: Tensor,
    eps: Tensor,
    per_coefficient: bool = False,
) -> Tensor:
    """Continuous-time term 1/2 gamma'(t) |eps - eps_hat|^2 at one time an image (Eq. 16), unbiased
    for uniform t; (N,) nats, or of
    every coordinate (for looking at: not where a schedule's shape is being learned).

    Where the schedule's shape is learned, the gradient that reaches it is that of the squared term,
    whose mean is minimal where the estimate's variance is: the mean itself does not depend on the
    shape.
    """
    shape, slope = schedule.progress(t)
    if schedule.learned_shape and shape.requires_grad:
        terms: list[Tensor] = []
        for v in (shape, slope):
            v.register_hook(lambda grad: grad * 2 * terms[0] / terms[1].clamp(min=1e-12))
    gamma = schedule.start + schedule.span * shape
    squared = (eps - denoiser(add_noise(y, gamma, eps), gamma, coarse)) ** 2
    if per_coefficient:
        return schedule.span * _broadcast(slope) * squared / 2
    squared = _per_image(squared)
    term = schedule.span * slope * squared / 2
    if schedule.learned_shape and shape.requires_grad:
        terms += [term.detach(), schedule.batch_mean(term.detach())]
    return term


def step_term(
    denoiser: Denoiser,
    schedule: Schedule,
    y: Tensor,
    coarse: Tensor | None,
    step: Tensor,
    steps: int,
    eps: Tensor,
    per_coefficient: bool = False,
) -> Tensor:
    """The k-th of T terms, 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2 with t = k/T and s =
    (k-1)/T; (N,) nats, or of every coordinate.

    Args:
        step: k of every image, (N,) integers in 1..T. Their sum over k is the diffusion term of a
            T-step model.
    """
    t = step.to(y.dtype) / steps
    s = (step - 1).to(y.dtype) / steps
    gamma_t, gamma_s = schedule(t), schedule(s)
    weight, squared = (
        torch.expm1(gamma_t - gamma_s),
        (eps - denoiser(add_noise(y, gamma_t, eps), gamma_t, coarse)) ** 2,
    )
    return _broadcast(weight) * squared / 2 if per_coefficient else weight * _per_image(squared) / 2


class Step(NamedTuple):
    """Gaussian p(z_s | z_t) of one reverse step: mean (N, ...) and standard deviation (N, 1, 1,
    1)."""

    mean: Tensor
    std: Tensor


def reverse_step(
    denoiser: Denoiser, schedule: Schedule, z_t: Tensor, coarse: Tensor | None, t: Tensor, s: Tensor
) -> Step:
    """p(z_s | z_t) = q(z_s | z_t, y = y_hat) for scalars s < t (VDM, Eq. 13 and appendix A.4)."""
    gamma_t, gamma_s = schedule(t), schedule(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    eps_hat = denoiser(z_t, gamma_t.expand(len(z_t)), coarse)
    shrink = -torch.expm1(gamma_s - gamma_t)
    mean = alpha_s / alpha_t * (z_t - shrink * sigma_t * eps_hat)
    return Step(mean, (sigma_s * torch.sqrt(shrink)).reshape(1, 1, 1, 1))


@torch.no_grad()
def sample_scale(
    spec: ScaleSpec,
    denoiser: Denoiser,
    schedule: Schedule,
    coarse: Tensor | None,
    n: int,
    steps: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Ancestral sampling of n scales with `steps` reverse steps; integers (N, ...) that some image
    has, int32."""
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, got {steps}")
    shape = (n, *spec.shape)
    z = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    times = torch.linspace(1.0, 0.0, steps + 1, device=device, dtype=dtype)
    for t, s in zip(times[:-1], times[1:]):
        mean, std = reverse_step(denoiser, schedule, z, coarse, t, s)
        z = mean + std * torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if on_step is not None:
            on_step()
    if not bool(torch.isfinite(z).all()):
        raise FloatingPointError(
            f"sampling of {spec.name} gave values that are not finite: the weights or the "
            f"schedule are broken"
        )
    alpha, sigma = alpha_sigma(schedule.gamma_min)
    return scale_draw(spec, z, alpha, sigma, coarse, generator)


def gamma_for_spacing(spec: ScaleSpec, ratio: float) -> float:
    """The gamma at which the noise's standard deviation, seen in the data, is `ratio` of one unit
    on the axis of the scale's
    integers: sigma / alpha = ratio * gain. For pixels that unit is one grey level."""
    if ratio <= 0:
        raise ValueError(f"the ratio of noise to spacing must be positive, got {ratio}")
    return 2 * math.log(ratio * spec.gain)
