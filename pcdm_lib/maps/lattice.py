"""Which integers a scale can hold given what is already decoded, and the decoder log P(z | z_0,
coarser) over exactly those.

For every kind of scale the integers allowed for one coefficient, given the coarser scales and the
bands before it, are an arithmetic progression `low, low + step, ..., high` (docs/likelihood.md,
Sect. 2):

    kind "pixels"   x             0 .. max                       step 1
    kind "sum"      s             0 .. max * 4^level             step 1
    kind "details"  p | s         |p| <= min(s, 4M - s)          step 2, p = s (mod 2)
                    q | s, p      |q| <= A + B                   step 2, q = s (mod 2)
                    r | s, p, q   |a - b| <= A, |c - d| <= B     step 4

with a - b = (q + r) / 2 and c - d = (q - r) / 2, M the largest value of a pixel of the block,
A = min(a+b, 2M-a-b) the largest |a-b| and B the same for c, d. The product of the spacings in
orthonormal units is 1, the volume of a pixel's cell: Lemma 4.1 on integers.

The decoder is P(z | z_0) proportional to q(z_0 | z) = N(z_0; alpha z, sigma^2) over the
progression. Its sum runs over a window of candidates around z_0 (never around the true value); what
the window leaves out is bounded from above and added, so the probabilities of all allowed integers
never sum to more than 1 and none of them is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pcdm_lib.maps.scales import ScaleSpec

# A window that reaches 9 standard deviations leaves out less than 1e-17 of the mass.
_REACH = 9.0
_MAX_WINDOW = 4096


class Progression(NamedTuple):
    """The allowed integers low, low + step, ..., high of every coefficient of one band; tensors (N,
    C, h, w)."""

    low: Tensor
    high: Tensor
    step: int

    @property
    def last(self) -> Tensor:
        """Number of steps from `low` to `high`."""
        return torch.div(self.high - self.low, self.step, rounding_mode="floor")


def allowed(
    spec: ScaleSpec, band: str, coarse: Tensor | None, decoded: dict[str, Tensor], like: Tensor
) -> Progression:
    """The integers that `band` of a scale can hold.

    Source: Lemma 4.1 on integers; docs/likelihood.md, Sect. 2.

    Args:
        spec: the scale.
        band: one of its bands; the bands before it must stand in `decoded`.
        coarse: integers rebuilt from the coarser scales, (N, C, h, w); needed for kind "details"
            only.
        decoded: the bands of this scale that are known already, {band: (N, C, h, w) integers}: none
            for "p", p for "q", p and q for "r".
        like: a tensor (N, C, h, w) that gives shape and device.

    Returns:
        The progression of every coefficient of the band.

    Raises:
        KeyError: where a band is missing in `decoded`.
    """
    if spec.kind in ("pixels", "sum"):
        high = spec.max_value * (4**spec.level if spec.kind == "sum" else 1)
        zero = torch.zeros(like.shape, dtype=torch.int32, device=like.device)
        return Progression(zero, zero + high, 1)
    pixel_max = spec.max_value * 4 ** (spec.level - 1)
    assert coarse is not None, "details stand beside the integers of the coarser scales"
    s = coarse
    if band == "p":
        reach = torch.minimum(s, 4 * pixel_max - s)
        return Progression(-reach, reach, 2)
    p = decoded["p"]
    top, bottom = (s + p) // 2, (s - p) // 2  # a + b and c + d
    reach_top, reach_bottom = (torch.minimum(v, 2 * pixel_max - v) for v in (top, bottom))
    if band == "q":
        return Progression(-(reach_top + reach_bottom), reach_top + reach_bottom, 2)
    q = decoded["q"]
    # a - b = (q + r) / 2 moves in steps of 2 between -A and A while c - d = q - (a - b) stays
    # between -B and B
    least = torch.maximum(-reach_top, q - reach_bottom)
    most = torch.minimum(reach_top, q + reach_bottom)
    return Progression(2 * least - q, 2 * most - q, 4)


def check_member(z: Tensor, progression: Progression, where: str) -> None:
    """Raise an error where an integer is not one of its progression.

    Args:
        z: integers (N, C, h, w).
        progression: what is allowed.
        where: the start of the error's message.

    Raises:
        ValueError: saying how many integers belong to no image.
    """
    inside = (
        (z >= progression.low)
        & (z <= progression.high)
        & ((z - progression.low) % progression.step == 0)
    )
    if not bool(inside.all()):
        raise ValueError(
            f"{where}: {int((~inside).sum())} of {z.numel()} integers belong to no image: "
            "they break the parity or the range that the coarser scales imply"
        )


def _window(
    centre: Tensor, tau: Tensor, progression: Progression
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Nearest allowed index, distance to it in units of tau, spacing in the same units, half-width
    of the window."""
    last = progression.last.to(centre.dtype)
    nearest = (
        ((centre - progression.low) / progression.step)
        .round()
        .clamp(min=torch.zeros_like(last), max=last)
    )
    distance = (centre - (progression.low + nearest * progression.step)) / tau
    spacing = progression.step / tau
    half = math.ceil(_REACH / spacing.detach().min().item()) + 1
    return nearest, distance, spacing, min(half, _MAX_WINDOW, max(int(last.max()), 1))


def log_prob(centre: Tensor, tau: Tensor, z: Tensor, progression: Progression) -> Tensor:
    """log P(z | z_0) in nats of every coefficient, (N, C, h, w) float64.

    Args:
        centre: the noisy coefficient z_0 on the axis of the integers, z_0 / alpha without gain and
            shift, float64.
        tau: standard deviation of the noise on that axis, broadcastable to `centre`.
        z: the true integers. They only enter the numerator.
        progression: the allowed integers of every coefficient (`allowed`).

    Returns:
        Nats, at most 0.

    Example:
        >>> from pcdm_lib.maps.lattice import Progression, log_prob
        >>> zero = torch.zeros(4, 1, 1, 1, dtype=torch.int32)
        >>> four = Progression(zero, zero + 3, 1)  # 0, 1, 2 and 3 are allowed
        >>> z = torch.arange(4, dtype=torch.int32).reshape(4, 1, 1, 1)
        >>> mass = log_prob(zero + 1.2, torch.tensor(0.5).double(), z, four).exp()
        >>> round(float(mass.sum()), 6)
        1.0
    """
    nearest, distance, spacing, half = _window(centre, tau, progression)
    last = progression.last.to(centre.dtype)
    # log of sum over candidates of exp(-(d_k^2 - d_nearest^2) / 2): the nearest one contributes
    # exactly 1
    total = torch.ones_like(centre)
    for k in range(1, half + 1):
        for sign in (1, -1):
            gap = k * spacing
            # d_k^2 - d_nearest^2, without the cancellation
            excess = gap * (gap - 2 * sign * distance)
            inside = (nearest + sign * k >= 0) & (nearest + sign * k <= last)
            total = total + torch.where(inside, torch.exp(-excess / 2), torch.zeros_like(total))
    left_out = (nearest - half > 0).to(total.dtype) + (nearest + half < last).to(total.dtype)
    # beyond the window d_k^2 - d_nearest^2 >= k (k - 1) spacing^2, since |distance| <= spacing / 2
    # wherever both sides exist and moving away from an end of the range only adds; a geometric
    # series bounds the rest
    tail = torch.exp(-half * (half + 1) * spacing**2 / 2) / -torch.expm1(-(half + 1) * spacing**2)
    total = total + left_out * tail
    # from the nearest candidate to z
    gap = (progression.low + nearest * progression.step - z.to(centre.dtype)) / tau
    return -gap * (gap + 2 * distance) / 2 - torch.log(total)


def draw(
    centre: Tensor, tau: Tensor, progression: Progression, generator: torch.Generator | None
) -> Tensor:
    """A draw of the allowed integers from P(z | z_0), int32; the most probable one where
    `generator` is None.

    Args:
        centre: z_0 on the axis of the integers, (N, C, h, w) float64.
        tau: standard deviation of the noise on that axis, broadcastable to `centre`.
        progression: the allowed integers of every coefficient.
        generator: of the draw, or None.

    Returns:
        Integers (N, C, h, w), int32.
    """
    nearest, distance, spacing, half = _window(centre, tau, progression)
    last = progression.last.to(centre.dtype)
    best_score, best_offset = torch.full_like(centre, -torch.inf), torch.zeros_like(centre)
    for k in range(-half, half + 1):
        gap = distance - k * spacing
        score = -(gap**2) / 2
        # Gumbel's trick: the argmax of log-weights plus Gumbel noise is a draw
        if generator is not None:
            uniform = torch.rand(
                centre.shape, generator=generator, dtype=centre.dtype, device=centre.device
            )
            score = score - torch.log(-torch.log(uniform.clamp(min=1e-300)))
        better = (score > best_score) & (nearest + k >= 0) & (nearest + k <= last)
        best_score = torch.where(better, score, best_score)
        best_offset = torch.where(better, torch.full_like(centre, float(k)), best_offset)
    return progression.low + ((nearest + best_offset) * progression.step).to(torch.int32)


# ---------------------------------------------------------------- a whole scale


def to_integer_axis(
    spec: ScaleSpec, z_0: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Noisy orthonormal coordinates z_0 = alpha (gain z + shift) + sigma eps -> (centre, tau) on
    the axis of z, float64.

    Args:
        spec: the scale.
        z_0: (N, *spec.shape).
        alpha: scale of the signal, a scalar or (N, 1, 1, 1).
        sigma: standard deviation of the noise, likewise.

    Returns:
        centre (N, *spec.shape) in units of an integer, and tau, of the shape of alpha.
    """
    alpha, sigma = alpha.double(), sigma.double()
    return (z_0.double() / alpha - spec.shift) / spec.gain, sigma / (alpha * spec.gain)


def scale_log_prob(
    spec: ScaleSpec,
    z_0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    z: Tensor,
    coarse: Tensor | None,
    per_coefficient: bool = False,
) -> Tensor:
    """log P(z | z_0, coarser) in nats, one number an image (N,): the reconstruction term of the
    bound with its sign turned.

    Each band is scored given the coarser scales and the bands before it, in the order in which a
    decoder meets them.

    Args:
        spec: the scale.
        z_0: noisy orthonormal coordinates (N, bands*C, h, w).
        alpha: scale of the signal in them, a scalar or (N, 1, 1, 1).
        sigma: standard deviation of their noise, likewise.
        z: the true integers, of the shape of z_0.
        coarse: integers rebuilt from the coarser scales, or None for the base.
        per_coefficient: the share of every coefficient, (N, bands*C, h, w), instead of their sum.

    Returns:
        Nats, (N,) float64.

    Raises:
        ValueError: where z holds integers that belong to no image.
    """
    centre, tau = to_integer_axis(spec, z_0, alpha, sigma)
    truth, shares = spec.split(z), []
    decoded: dict[str, Tensor] = {}
    for band, band_centre in spec.split(centre).items():  # in decoding order
        progression = allowed(spec, band, coarse, decoded, band_centre)
        check_member(truth[band], progression, f"{spec.name}, band {band}")
        shares.append(log_prob(band_centre, tau, truth[band], progression))
        decoded[band] = truth[band]
    if per_coefficient:
        return torch.cat(shares, dim=1)
    return cast(Tensor, sum(share.sum(dim=(1, 2, 3)) for share in shares))


def scale_draw(
    spec: ScaleSpec,
    z_0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    coarse: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Integers (N, bands*C, h, w) drawn band after band from P(z | z_0, coarser): always a scale of
    some image.

    Args:
        spec: the scale.
        z_0: noisy orthonormal coordinates (N, bands*C, h, w).
        alpha: scale of the signal in them, a scalar or (N, 1, 1, 1).
        sigma: standard deviation of their noise, likewise.
        coarse: integers rebuilt from the coarser scales, or None for the base.
        generator: of the draw; None takes the most probable integers.

    Returns:
        Integers (N, bands*C, h, w), int32.
    """
    centre, tau = to_integer_axis(spec, z_0, alpha, sigma)
    decoded: dict[str, Tensor] = {}
    for band, band_centre in spec.split(centre).items():  # in decoding order
        progression = allowed(spec, band, coarse, decoded, band_centre)
        decoded[band] = draw(band_centre, tau, progression, generator)
    return torch.cat(list(decoded.values()), dim=1)


# ---------------------------------------------------------------- preconditioning
class LatticeMoments(NamedTuple):
    """Sums over the integers k of a normalised Gaussian weight w_k, about the integer nearest to
    its mean: `first` = sum k w_k, `second` = sum k^2 w_k, and the same with alternating signs,
        `alternating[j]` = sum (-1)^k k^j w_k."""

    nearest: Tensor
    first: Tensor
    second: Tensor
    alternating: tuple[Tensor, Tensor, Tensor]


def lattice_moments(mean: Tensor, std: Tensor) -> LatticeMoments:
    """Moments of N(mean, std^2) restricted to the integers.

    Two regimes of the theta function: seven terms around the nearest integer where the Gaussian is
    narrow; where it is wide (std above 0.6) the first harmonic of its Fourier series, the next one
    being below 1e-6.

    Args:
        mean: of the Gaussian, (N, C, h, w), in units of an integer.
        std: its standard deviation, same shape and unit.

    Returns:
        `LatticeMoments`, each part of the shape of `mean`.
    """
    nearest = mean.round()
    f = mean - nearest
    narrow = std.clamp(min=1e-3, max=0.6)
    k = torch.arange(-3, 4, device=f.device, dtype=f.dtype).reshape(7, *[1] * f.ndim)
    weight = torch.softmax(-((f - k) ** 2) / (2 * narrow**2), dim=0)
    signed = weight * (1 - 2 * (k % 2))
    sums = [
        (weight * k).sum(0),
        (weight * k**2).sum(0),
        signed.sum(0),
        (signed * k).sum(0),
        (signed * k**2).sum(0),
    ]
    # characteristic function at 0 and at pi, and its derivatives there
    tau2 = std.clamp(min=0.6) ** 2
    decay, sine, cosine = (
        2 * torch.exp(-2 * math.pi**2 * tau2),
        torch.sin(2 * math.pi * f),
        torch.cos(2 * math.pi * f),
    )
    total = 1 + decay * cosine
    half, half_sine, half_cosine = (
        2 * torch.exp(-(math.pi**2) * tau2 / 2),
        torch.sin(math.pi * f),
        torch.cos(math.pi * f),
    )
    wide = [
        f - 2 * math.pi * tau2 * decay * sine / total,
        f**2
        + tau2
        - decay * tau2 * (4 * math.pi**2 * tau2 * cosine + 4 * math.pi * f * sine) / total,
        half * half_cosine / total,
        half * (f * half_cosine - math.pi * tau2 * half_sine) / total,
        half
        * ((tau2 - (math.pi * tau2) ** 2 + f**2) * half_cosine - 2 * math.pi * tau2 * f * half_sine)
        / total,
    ]
    first, second, a, b, c = (torch.where(std > 0.6, w, n) for w, n in zip(wide, sums))
    return LatticeMoments(nearest, first, second, (a, b, c))


def lattice_posterior(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of N(mean, std^2) restricted to the integers.

    Args:
        mean: (N, C, h, w), in units of an integer.
        std: standard deviation, same shape and unit.

    Returns:
        Mean and variance, each of the shape of `mean`.

    Example:
        >>> from pcdm_lib.maps.lattice import lattice_posterior
        >>> mean, variance = lattice_posterior(torch.tensor([3.1]), torch.tensor([0.05]))
        >>> float(mean), float(variance)
        (3.0, 0.0)
    """
    m = lattice_moments(mean, std)
    return m.nearest + m.first, (m.second - m.first**2).clamp(min=0)


def details_posterior(mean: Tensor, std: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of independent Gaussians for (p, q, r) restricted to the integers that
    belong to an image.

    Those are p = s + 2 k_p and so on in parity, with s + p + q + r = 0 (mod 4): k_p + k_q + k_r has
    a known parity. The constraint enters through (1 + sign * (-1)^(k_p + k_q + k_r)) / 2, so three
    sums with alternating signs are all that it takes.

    Args:
        mean: of the Gaussians, (N, 3C, h, w), band after band, in units of an integer.
        std: their standard deviations, same shape and unit.
        coarse: s, integers (N, C, h, w).

    Returns:
        Means and variances, each (N, 3C, h, w).
    """
    parity = coarse & 1
    offset = torch.cat([parity] * 3, dim=1).to(mean.dtype)
    m = lattice_moments((mean - offset) / 2, std / 2)
    sign = 1 - 2 * (((coarse + 3 * parity) // 2) & 1).to(mean.dtype)
    flips = 1 - 2 * (m.nearest % 2)  # the sums are about the nearest integer
    a, b, c = (v * flips for v in m.alternating)
    a_p, a_q, a_r = a.chunk(3, dim=1)
    others = torch.cat([sign * a_q * a_r, sign * a_p * a_r, sign * a_p * a_q], dim=1)
    chance = (1 + torch.cat([sign * a_p * a_q * a_r] * 3, dim=1)).clamp(min=1e-6)
    first = ((m.first + others * b) / chance).clamp(min=-2.0, max=2.0)
    second = (m.second + others * c) / chance
    return offset + 2 * (m.nearest + first), 4 * (second - first**2).clamp(min=0)
