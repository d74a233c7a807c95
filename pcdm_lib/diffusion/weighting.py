"""What a training step weighs: the bound itself, or the weights of Karras et al. 2022 (arXiv
2206.00364), which are for the look of samples.

The bound gives every noise level the weight that it has in a code length; most of a photograph's
bits are noise that nobody sees. Karras and others train where an image takes shape instead: noise
levels around the size of the data, each with the same weight on the output of their
preconditioned network, or nearly: `s` below is the deviation of a whole scale, where the network
knows each band's. A model trained so has a bound too, and `evaluate` shows what it costs in bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import Schedule
from pcdm_lib.diffusion.terms import Denoiser, add_noise

WEIGHTINGS = ("likelihood", "edm")

# (denoiser, schedule, y, coarse, u, eps) -> loss of each image (N,), with u uniform in [0, 1)
Loss = Callable[[Denoiser, Schedule, Tensor, "Tensor | None", Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EdmLoss:
    """lambda(sigma) |D - y|^2 with ln sigma normal (Karras et al. 2022, Table 1 and Eq. 8), for one
    scale.

    With sigma the noise in units of the data, y_hat - y = sigma (eps - eps_hat), so lambda(sigma) =
    (sigma^2 + s^2) / (sigma s)^2 is the weight (sigma^2 + s^2) / s^2 on |eps - eps_hat|^2. Their
    numbers stand for data of standard deviation 1/2; a scale of a cascade has another, so
    they are kept relative to it: ln(sigma / s) has mean -1.2 - ln(1/2).

    Args:
        std: s, standard deviation of the scale's orthonormal coordinates (a scalar).
        mean: of ln(sigma / s).
        spread: standard deviation of ln(sigma / s).
    """

    std: float
    mean: float = -1.2 - math.log(0.5)
    spread: float = 1.2

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        y: Tensor,
        coarse: Tensor | None,
        u: Tensor,
        eps: Tensor,
    ) -> Tensor:
        """The loss of every image.

        Args:
            denoiser: eps_hat(z_t, gamma, coarse).
            schedule: its endpoints bound the noise levels.
            y: orthonormal coordinates (N, C, h, w).
            coarse: integers rebuilt from the coarser scales; None for the base.
            u: (N,), uniform in [0, 1).
            eps: noise of unit variance, of the shape of y.

        Returns:
            (N,); not in nats, and no bound.
        """
        gamma = self.levels(schedule, u)
        squared = (
            ((eps - denoiser(add_noise(y, gamma, eps), gamma, coarse)) ** 2).flatten(1).sum(dim=1)
        )
        return (torch.exp(gamma) / self.std**2 + 1) * squared / 2

    def levels(self, schedule: Schedule, u: Tensor) -> Tensor:
        """gamma = 2 ln sigma of the lognormal at the quantiles u (N,), cut to the range of the
        schedule.

        Args:
            schedule: its endpoints bound the noise levels.
            u: (N,), uniform in [0, 1).

        Returns:
            gamma (N,).
        """
        centre, width = 2 * (self.mean + math.log(self.std)), 2 * self.spread
        low, high = (
            torch.special.ndtr((end.double() - centre) / width)
            for end in (schedule.gamma_min, schedule.gamma_max)
        )
        quantile = (low + (high - low) * u.double()).clamp(1e-9, 1 - 1e-9)
        gamma = (centre + width * torch.special.ndtri(quantile)).to(u.dtype)
        return torch.minimum(torch.maximum(gamma, schedule.gamma_min), schedule.gamma_max)
