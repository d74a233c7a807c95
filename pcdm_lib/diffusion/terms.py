"""One scale as a variational diffusion model: forward process, the three terms of its bound, a
reverse step.

Everything here works in the orthonormal coordinates y of one scale (maps/hierarchical.py),
y = gain z + shift for its integers z, with z_t = alpha_t y + sigma_t eps and eps of unit variance
in every coordinate. The denoiser is an argument,

    eps_hat = denoiser(z_t, gamma_t, coarse)

with z_t (N, ...), gamma_t (N,), and coarse integers (N, C, h, w) or None. So a network, the exact
posterior mean of a small source or a constant will do. All terms are in nats, one an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import Schedule, alpha_sigma
from pcdm_lib.maps.lattice import scale_log_prob
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
        """prior + diffusion + reconstruction, nats, of their shape."""
        return self.prior + self.diffusion + self.reconstruction


def per_image(x: Tensor) -> Tensor:
    """Coordinates (N, ...) -> their sum over each image, (N,).

    Args:
        x: (N, ...).

    Returns:
        (N,).
    """
    return x.flatten(1).sum(dim=1)


def per_coefficient(x: Tensor) -> Tensor:
    """Coordinates (N, ...) as they are: the share of each, for looking at.

    Args:
        x: (N, ...).

    Returns:
        x.
    """
    return x


Share = Callable[[Tensor], Tensor]  # per_image or per_coefficient


def _column(v: Tensor, like: Tensor | None = None) -> Tensor:
    """One number an image, (N,), beside coordinates (N, C, h, w); as it is beside another (N,)."""
    return v.reshape(-1, 1, 1, 1) if like is None or like.ndim == 4 else v


def add_noise(y: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
    """The forward process: z_t = alpha y + sigma eps.

    Args:
        y: orthonormal coordinates (N, C, h, w).
        gamma: log sigma^2 / alpha^2, (N,).
        eps: noise of unit variance, of the shape of y.

    Returns:
        z_t, of the shape of y.

    Example:
        >>> from pcdm_lib.diffusion import add_noise
        >>> y, eps = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
        >>> z_t = add_noise(y, torch.tensor([0.0, 5.0]), eps)
        >>> [round(float(v), 3) for v in z_t[:, 0, 0, 0]]
        [0.707, 0.082]
    """
    alpha, sigma = alpha_sigma(_column(gamma))
    return alpha * y + sigma * eps


def prior_term(y: Tensor, schedule: Schedule, share: Share = per_image) -> Tensor:
    """KL( q(z_1 | y) || N(0, I) ) in nats, (N,), or of every coordinate.

    Source: the second term of Eq. 16.

    Args:
        y: orthonormal coordinates (N, C, h, w).
        schedule: noise levels; only gamma_max is used.
        share: `per_image`, or `per_coefficient` for the share of every coordinate.

    Returns:
        Nats, (N,), or of the shape of y.
    """
    alpha, _ = alpha_sigma(schedule.gamma_max.to(y.dtype))
    # sigma^2 = 1 - alpha^2, so the variance part is -(alpha^2 + log(1 - alpha^2)) / 2, tiny and
    # best kept in this form
    return share((alpha * y) ** 2 / 2 - (alpha**2 + torch.log1p(-(alpha**2))) / 2)


def reconstruction_term(
    spec: ScaleSpec,
    schedule: Schedule,
    y: Tensor,
    z: Tensor,
    coarse: Tensor | None,
    eps: Tensor,
    share: Share = per_image,
) -> Tensor:
    """-log P(z | z_0, coarser) at one draw z_0 = alpha_0 y + sigma_0 eps, in nats, (N,), or of
    every coordinate.

    Source: the first term of Eq. 16; the decoder is that of maps/lattice.py.

    Args:
        spec: the scale.
        schedule: noise levels; only gamma_min is used.
        y: orthonormal coordinates (N, C, h, w), `spec.to_float(z)`.
        z: integers of the same shape.
        coarse: integers rebuilt from the coarser scales; None for the base.
        eps: noise of unit variance, of the shape of y.
        share: `per_image`, or `per_coefficient` for the share of every coordinate.

    Returns:
        Nats, (N,), or of the shape of y.

    Raises:
        ValueError: where z holds integers that belong to no image.
    """
    alpha, sigma = alpha_sigma(schedule.gamma_min.double())
    z_0 = alpha * y.double() + sigma * eps.double()
    apart = share is per_coefficient
    return -scale_log_prob(spec, z_0, alpha, sigma, z, coarse, apart).to(y.dtype)


def diffusion_term(
    denoiser: Denoiser,
    schedule: Schedule,
    y: Tensor,
    coarse: Tensor | None,
    t: Tensor,
    eps: Tensor,
    share: Share = per_image,
) -> Tensor:
    """1/2 gamma'(t) |eps - eps_hat|^2 in nats, (N,), at one time an image (Eq. 16): unbiased for
    uniform t, or with `per_coefficient` of every coordinate.

    Args:
        denoiser: eps_hat(z_t, gamma, coarse).
        schedule: noise levels.
        y: orthonormal coordinates (N, C, h, w).
        coarse: integers rebuilt from the coarser scales; None for the base.
        t: times (N,) in [0, 1).
        eps: noise of unit variance, of the shape of y.
        share: `per_image`, or `per_coefficient` for the share of every coordinate.

    Returns:
        Nats, (N,), or of the shape of y.

    Example:
        >>> from pcdm_lib.diffusion import diffusion_term
        >>> schedule = pcdm.LinearSchedule(-13.0, 5.0)
        >>> y, eps, t = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.tensor([0.2, 0.7])
        >>> nothing = lambda z_t, gamma, coarse: torch.zeros_like(z_t)  # all noise is error
        >>> diffusion_term(nothing, schedule, y, None, t, eps).tolist()  # 18 / 2 * 16 coordinates
        [144.0, 144.0]
    """
    gamma, slope, hand_on = schedule.level(t)
    z_t = add_noise(y, gamma, eps)
    eps_hat = denoiser(z_t, gamma, coarse)
    error = share((eps - eps_hat) ** 2)
    return hand_on(_column(slope, error) * error / 2)


def step_term(
    denoiser: Denoiser,
    schedule: Schedule,
    y: Tensor,
    coarse: Tensor | None,
    step: tuple[Tensor, int],
    eps: Tensor,
    share: Share = per_image,
) -> Tensor:
    """The k-th of T terms, 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2 with t = k/T and s =
    (k-1)/T; (N,) nats, or of every coordinate.

    Args:
        denoiser: eps_hat(z_t, gamma, coarse).
        schedule: noise levels.
        y: orthonormal coordinates (N, C, h, w).
        coarse: integers rebuilt from the coarser scales; None for the base.
        step: (k, T), k of every image, (N,) integers in 1..T. Their sum over k is the diffusion
            term of a T-step model.
        eps: noise of unit variance, of the shape of y.
        share: `per_image`, or `per_coefficient` for the share of every coordinate.

    Returns:
        Nats, (N,), or of the shape of y.
    """
    k, steps = step
    gamma_t, gamma_s = schedule(k.to(y.dtype) / steps), schedule((k - 1).to(y.dtype) / steps)
    z_t = add_noise(y, gamma_t, eps)
    eps_hat = denoiser(z_t, gamma_t, coarse)
    error = share((eps - eps_hat) ** 2)
    return _column(torch.expm1(gamma_t - gamma_s), error) * error / 2


class Step(NamedTuple):
    """Gaussian p(z_s | z_t) of one reverse step.

    Attributes:
        mean: (N, ...).
        std: standard deviation, (1, 1, 1, 1).
    """

    mean: Tensor
    std: Tensor


def reverse_step(
    denoiser: Denoiser, schedule: Schedule, z_t: Tensor, coarse: Tensor | None, t: Tensor, s: Tensor
) -> Step:
    """p(z_s | z_t) = q(z_s | z_t, y = y_hat) for scalars s < t (VDM, Eq. 13 and appendix A.4).

    Args:
        denoiser: eps_hat(z_t, gamma, coarse).
        schedule: noise levels.
        z_t: (N, C, h, w).
        coarse: integers rebuilt from the coarser scales; None for the base.
        t: time of z_t, a scalar.
        s: time to go to, a scalar below t.

    Returns:
        Mean (N, C, h, w) and standard deviation (1, 1, 1, 1).
    """
    gamma_t, gamma_s = schedule(t), schedule(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    eps_hat = denoiser(z_t, gamma_t.expand(len(z_t)), coarse)
    shrink = -torch.expm1(gamma_s - gamma_t)
    mean = alpha_s / alpha_t * (z_t - shrink * sigma_t * eps_hat)
    return Step(mean, (sigma_s * torch.sqrt(shrink)).reshape(1, 1, 1, 1))


def gamma_for_spacing(spec: ScaleSpec, ratio: float) -> float:
    """The gamma at which the noise's standard deviation, seen in the data, is `ratio` of one unit
    on the axis of the scale's integers: sigma / alpha = ratio * gain. For pixels that unit is one
    grey level.

    Args:
        spec: the scale.
        ratio: noise over spacing, positive.

    Returns:
        gamma, a number.

    Raises:
        ValueError: for a ratio that is not positive.

    Example:
        >>> from pcdm_lib.diffusion import gamma_for_spacing
        >>> pixels = pcdm.Identity().specs((3, 32, 32))[0]
        >>> round(gamma_for_spacing(pixels, 0.15), 2)
        -13.49
    """
    if ratio <= 0:
        raise ValueError(f"the ratio of noise to spacing must be positive, got {ratio}")
    return 2 * math.log(ratio * spec.gain)
