"""Mixtures of logistic distributions over an arithmetic progression of integers, with parameters
that stand on grids: what a direct model (models/direct.py) says of a coefficient.

The probability of an allowed value is what the mixture has between the middles to its neighbours;
the smallest and the largest value take the tails. So the probabilities of the allowed values have
the sum 1, whatever the parameters are (docs/likelihood.md, Sect. 9).
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_STEP = 16  # grid points of a logit a nat
PLACE_STEP = 16  # grid points of a location a unit
WIDTHS = 96  # entries of the table of widths
WIDTH_STEP = 10  # entries a factor of e
_NARROWEST = Decimal("0.06")  # units; the spacing of the finest level is 2


def width(index: int) -> Decimal:
    """A width of the table, in units of a level: to 40 digits, the same on every machine.

    Args:
        index: 0 to WIDTHS - 1.

    Returns:
        0.06 exp(index / 10).
    """
    return _NARROWEST * (Decimal(index) / WIDTH_STEP).exp()


class Mixture(NamedTuple):
    """Parameters of M components, each (N, J, M, h, w), whole numbers on their grids in a floating
    type.

    Attributes:
        logits: in steps of 1/16.
        places: in sixteenths of a unit.
        widths: indices of the table of widths.
    """

    logits: Tensor
    places: Tensor
    widths: Tensor


def mixture_nats(mixture: Mixture, z: Tensor, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
    """-log P(z) in nats of every coefficient.

    Args:
        mixture: parameters, (N, J, M, h, w) each.
        z: coefficients in units of their level, (N, J, h, w).
        low: the smallest allowed, likewise.
        high: the largest allowed, likewise.
        step: spacing in the same units, broadcastable to z.

    Returns:
        (N, J, h, w), of the type of the mixture.

    Example:
        >>> from pcdm_lib.models.mixture import Mixture, mixture_nats
        >>> z = torch.arange(-6.0, 7.0, 2.0).reshape(-1, 1, 1, 1)
        >>> flat = torch.zeros(7, 1, 1, 1, 1)
        >>> mixture = Mixture(flat, flat + 5, flat + 30)
        >>> step = torch.full((1, 1, 1, 1), 2.0)
        >>> nats = mixture_nats(mixture, z, 0 * z - 6, 0 * z + 6, step)
        >>> round(float((-nats).exp().sum()), 5)
        1.0
    """
    z, half = z.unsqueeze(2), step.unsqueeze(2) / 2
    places = mixture.places / PLACE_STEP
    inverse = torch.exp(mixture.widths / -WIDTH_STEP) / float(_NARROWEST)
    middle, reach = (z - places) * inverse, half * inverse
    upper, lower = middle + reach, middle - reach
    between = torch.sigmoid(upper) - torch.sigmoid(lower)
    # where the difference is lost to rounding: the density at the middle, times the spacing
    tiny = 1e-5 if z.dtype == torch.float32 else 1e-12
    density = -middle - 2 * F.softplus(-middle) + torch.log(2 * reach)
    found = torch.where(between > tiny, between.clamp(min=tiny * 1e-5).log(), density)
    at_top, at_bottom = (z + half > high.unsqueeze(2)), (z - half < low.unsqueeze(2))
    found = torch.where(at_top, -F.softplus(lower), found)
    found = torch.where(at_bottom, -F.softplus(-upper), found)
    found = torch.where(at_top & at_bottom, torch.zeros_like(found), found)
    return -torch.logsumexp(found + torch.log_softmax(mixture.logits / LOGIT_STEP, dim=2), dim=2)
