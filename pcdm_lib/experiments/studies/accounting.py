"""Two ways of counting bits that are no likelihood, rebuilt as arithmetic beside the one that is
(docs/likelihood.md, Sect. 4).

The code released with the paper has networks for the scales, but one decoder at the end, over
pixels, from the noisy z_0 of all scales:

    coarse clean   its fine scale is shown the clean coarse scale, which that decoder never has
    LL/2           its base is scored on LL / 2^levels, so the noise whose squared error it counts
                   has variance 4^-levels instead of 1

Facts only; nothing here is taken from that code. What the paper proves is not touched: Lemma 4.1
and Eq. 15 hold, and the first row of `ACCOUNTINGS` is what follows from them.

Every accounting is a sum over the same ledger of terms, in nats an image: prior and diffusion by
scale, and the two decoders. For a source whose images can be listed, `exact_ledger` gives the
ledger with the exact denoiser; for a trained model, `recount` counts the same draws in every way.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import LinearSchedule, alpha_sigma
from pcdm_lib.diffusion.terms import gamma_for_spacing, prior_term
from pcdm_lib.likelihood.enumerable import EnumeratedSource
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.lattice import scale_log_prob
from pcdm_lib.maps.scales import Scales, ScaleSpec, image_shape_of
from pcdm_lib.maps.standard import Identity
from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.models.cascade import Bound, Cascade, bits_per_dim

# sigma_0 over the spacing of pixels at gamma_min = -13.3, where VDM's learnable schedule starts
# (the paper's Appendix B takes that schedule over and states no noise levels)
PAPER_RATIO = 0.166
MOST_IMAGES = 1024  # of a source: every pair of its images is compared


class Accounting(NamedTuple):
    """Which terms of a ledger are added up.

    Attributes:
        pixels: one decoder over pixels from noisy scales, instead of one a scale given the clean
            coarser ones.
        halved: the base's squared error is that of LL / 2^levels.
    """

    pixels: bool
    halved: bool


ACCOUNTINGS = {
    "valid": Accounting(False, False),
    "coarse clean": Accounting(True, False),
    "LL/2": Accounting(False, True),
    "both": Accounting(True, True),
}


class Figures(NamedTuple):
    """Expected code length in bits per dimension and Kraft's sum, each with its Monte-Carlo
    standard error."""

    bpd: float
    bpd_error: float
    kraft: float
    kraft_error: float


class Ledger(NamedTuple):
    """Terms in nats of K images, R independent estimates of each: prior, diffusion and lattice (R,
    K, S) by scale, pixels (R, K)."""

    prior: Tensor
    diffusion: Tensor
    lattice: Tensor
    pixels: Tensor
    base_share: float  # what LL / 2^levels leaves of the base's squared error
    source: EnumeratedSource

    def nats(self, accounting: Accounting) -> Tensor:
        """(R, K): what the accounting says that each image costs."""
        share = torch.ones(self.diffusion.shape[-1], dtype=torch.float64)
        share[0] = self.base_share if accounting.halved else 1.0
        decoder = self.pixels if accounting.pixels else self.lattice.sum(-1)
        return self.prior.sum(-1) + (self.diffusion * share).sum(-1) + decoder

    def expected(self, term: Tensor) -> float:
        """A term's mean over the source, in bits per dimension; (R, K) or (R, K, S), of which all
        scales are added."""
        whole = term.sum(-1) if term.ndim == 3 else term
        return float(
            bits_per_dim(
                whole.mean(0) @ self.source.log_prob.exp(), math.prod(self.source.image_shape)
            )
        )

    def figures(self, accounting: Accounting) -> Figures:
        """What the accounting makes of the source. Kraft's sum is that of the mean code lengths,
        its error from the spread over repeats."""
        nats = self.nats(accounting)
        means = bits_per_dim(nats @ self.source.log_prob.exp(), math.prod(self.source.image_shape))
        sums, repeats = torch.exp(-nats).sum(1), math.sqrt(len(nats))
        return Figures(
            float(means.mean()),
            float(means.std() / repeats),
            float(torch.exp(-nats.mean(0)).sum()),
            float(sums.std() / repeats),
        )


# ---------------------------------------------------------------- decoders


def pixel_decoder(cascade: Cascade, x: Tensor, eps: list[Tensor]) -> Tensor:
    """-log P(x | z_0 of all scales) in nats, (N,): noisy scales put together, every pixel by itself
    over its grey levels.

    Args:
        x: integer images (N, C, H, W).
        eps: noise of every scale in its orthonormal coordinates, coarsest first, float64.
    """
    views = []
    variance = torch.zeros((), dtype=torch.float64)
    for scale, (z, _), noise in zip(cascade.scales, cascade.decompose(x), eps):
        spec = scale.spec
        alpha, sigma = alpha_sigma(scale.schedule.gamma_min.double())
        views.append(
            cascade.map.to_view(spec, spec.to_float(z, torch.float64) + sigma / alpha * noise)
        )
        # a pixel's share of each band is the band's of the whole
        variance = variance + (sigma / alpha) ** 2 * spec.dims / cascade.dims
    pixels = cascade.map.synthesise(Scales(cascade.map.names(), views))
    one = torch.ones((), dtype=torch.float64)
    return -scale_log_prob(
        _pixels(cascade.image_shape, cascade.max_value), pixels, one, variance.sqrt(), x, None
    )


def lattice_decoder(cascade: Cascade, x: Tensor, eps: list[Tensor]) -> Tensor:
    """-log P(z_s | z_0 of scale s, clean coarser scales) in nats, (N, S): the reconstruction terms
    of the bound, at that noise."""
    rows = []
    for scale, (z, coarse), noise in zip(cascade.scales, cascade.decompose(x), eps):
        spec = scale.spec
        alpha, sigma = alpha_sigma(scale.schedule.gamma_min.double())
        rows.append(
            -scale_log_prob(
                spec,
                alpha * spec.to_float(z, torch.float64) + sigma * noise,
                alpha,
                sigma,
                z,
                coarse,
            )
        )
    return torch.stack(rows, dim=1)


def _pixels(image_shape: tuple[int, int, int], max_value: int) -> ScaleSpec:
    return Identity().specs(image_shape, max_value)[0]


def _noise(cascade: Cascade, n: int, generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randn((n, *spec.shape), generator=generator, dtype=torch.float64)
        for spec in cascade.specs
    ]


def _even_noise(
    cascade: Cascade, draws: int, count: int, generator: torch.Generator
) -> list[Tensor]:
    """`_noise` for `count` images, (draws, count, ...) a scale: Sobol points with a random shift
    for every image, unbiased and more even than independent draws."""
    points = torch.quasirandom.SobolEngine(cascade.dims).draw(draws, dtype=torch.float64)[:, None]
    shift = torch.rand((count, cascade.dims), generator=generator, dtype=torch.float64)
    flat = torch.special.ndtri(((points + shift) % 1).clamp(2.0**-50, 1 - 2.0**-50))
    return [
        v.reshape(draws, count, *spec.shape)
        for v, spec in zip(flat.split([spec.dims for spec in cascade.specs], dim=-1), cascade.specs)
    ]


def grid_bits(ratio: float) -> float:
    """Expected -log2 of the probability that a decoder gives to the true point of an endless grid,
    seen through Gaussian noise of `ratio` times the grid's spacing, in bits. 0 without noise;
    log2(ratio sqrt(2 pi e)), the noise's own entropy, where it covers many points.

    Raises:
        ValueError: unless 0 < ratio < infinity.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"the ratio of noise to spacing must be positive and finite, got {ratio}")
    # a sum over the grid is then an integral, but for a share exp(-2 (pi ratio)^2) < 1e-34
    if ratio > 2:
        return math.log2(ratio * math.sqrt(2 * math.pi * math.e))
    # in standard deviations; the integrand is smooth, so the plain sum is exact to 1e-12
    noise = np.linspace(-9.0, 9.0, 4001)
    weight = np.exp(-(noise**2) / 2)
    reach = math.ceil(18 * ratio) + 1
    k = np.arange(-reach, reach + 1)[:, None] / ratio
    scores = -((noise - k) ** 2) / 2 + noise**2 / 2
    top = scores.max(0)
    return float(
        (weight * (top + np.log(np.exp(scores - top).sum(0)))).sum() / weight.sum() / math.log(2)
    )


def leak_bits(ratio: float, levels: int = 1) -> float:
    """Bits per dimension that "coarse clean" leaves out on large-ranged images, whatever the
    network: lattice decoders less the pixel one.

    Networks, prior and noise being the same, the two counts differ in their decoders alone. In
    pixel spacings the grid of the base is 2^-levels wide, those of level j's details are 2^(1-j),
    2^(1-j) and 2^(2-j) (docs/likelihood.md, Sect. 2), and a level's band is 4^-j of the dimensions.
    The ends of the ranges are left out of this, so it is exact only for images that stay away from
    black and white. One scale (0 levels) leaves nothing out.

    Raises:
        ValueError: for levels that no map has, and unless 0 < ratio < infinity.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 0 <= levels <= 10:
        raise ValueError(f"levels must be a whole number from 0 to 10, got {levels!r}")
    lattice = 4.0**-levels * grid_bits(2.0**levels * ratio)
    for j in range(1, levels + 1):
        lattice += 4.0**-j * (
            2 * grid_bits(2.0 ** (j - 1) * ratio) + grid_bits(2.0 ** (j - 2) * ratio)
        )
    return lattice - grid_bits(ratio)


@torch.no_grad()
def decoder_gap(
    hierarchy: HierarchicalMap,
    images: Tensor,
    sigma_ratio: float = PAPER_RATIO,
    max_value: int = 255,
    draws: int = 2,
    seed: int = 0,
) -> Tensor:
    """What "coarse clean" leaves out of integer images (N, C, H, W): lattice decoders less the
    pixel one, (N,) bits per dimension, an unbiased draw. No network takes part. `leak_bits` is its
    expectation where no image comes near the ends of the range."""
    cascade = _undenoised(hierarchy, image_shape_of(images), sigma_ratio, max_value=max_value)
    generator = torch.Generator().manual_seed(seed)
    gaps = [
        lattice_decoder(cascade, images, eps).sum(1) - pixel_decoder(cascade, images, eps)
        for eps in (_noise(cascade, len(images), generator) for _ in range(draws))
    ]
    return bits_per_dim(torch.stack(gaps).mean(0), cascade.dims)


def _undenoised(
    hierarchy: HierarchicalMap,
    image_shape: tuple[int, int, int],
    sigma_ratio: float,
    gamma_max: float = 8.0,
    max_value: int = 255,
) -> Cascade:
    """A cascade without denoisers, with noise `sigma_ratio` of the pixels' spacing at t = 0 in
    every scale."""
    schedule = LinearSchedule(
        gamma_for_spacing(_pixels(image_shape, max_value), sigma_ratio), gamma_max
    ).double()
    return Cascade(hierarchy, image_shape, [None] * hierarchy.num_scales, schedule, max_value)


# ---------------------------------------------------------------- a source whose images can be
# listed


@torch.no_grad()
def exact_ledger(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap | None = None,
    sigma_ratio: float = PAPER_RATIO,
    gamma_max: float = 8.0,
    draws: int = 64,
    repeats: int = 8,
    seed: int = 0,
) -> Ledger:
    """The ledger of all images of a source with the exact denoiser, in continuous time, without
    integrating over time.

    With the posterior mean as denoiser, the reverse process is the forward process of the source
    run backwards, so the diffusion term telescopes:

        1/2 E int |eps - eps_hat|^2 d gamma  =  KL( q(z_0 | z) || p(z_0 | coarser) )  -  KL( q(z_1 |
        z) || p(z_1 | coarser) )

    with p the source's own noisy density, a mixture over its images (the pointwise relation of
    information and mean square error: Guo, Shamai and Verdu 2005; Venkat and Weissman 2012). The
    two KLs and the decoders are averaged over `draws` evenly spread draws of noise (a power of 2
    spreads best), in each of `repeats` independently.

    Args:
        hierarchy: the map, one wavelet step by default.
        sigma_ratio: noise at t = 0 over the spacing of pixels, the same in all coordinates.
    Raises:
        ValueError: for a source of more than `MOST_IMAGES` images, and for fewer than 2 draws or
            repeats.
    """
    if len(source.images) > MOST_IMAGES:
        raise ValueError(
            f"exact_ledger compares every pair of images: at most {MOST_IMAGES}, got "
            f"{len(source.images)}"
        )
    if draws < 2 or repeats < 2:
        raise ValueError(
            f"exact_ledger needs at least 2 draws and 2 repeats, got {draws} and {repeats}"
        )
    hierarchy = hierarchy or HaarWavelet(1)
    cascade = _undenoised(hierarchy, source.image_shape, sigma_ratio, gamma_max, source.max_value)
    specs, schedule = cascade.specs, cascade.scales[0].schedule
    x, count = source.images, len(source.images)
    many, generator, rows = x.repeat(draws, 1, 1, 1), torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        eps = _even_noise(cascade, draws, count, generator)
        prior, diffusion = [], []
        for spec, (z, coarse), noise in zip(specs, cascade.decompose(x), eps):
            y = spec.to_float(z, torch.float64)
            prior.append(prior_term(y, schedule))
            ends = [
                _mixture_kl(y, coarse, source.log_prob, gamma, noise)
                for gamma in (schedule.gamma_min, schedule.gamma_max)
            ]
            diffusion.append(ends[0] - ends[1])
        every = [v.flatten(0, 1) for v in eps]
        lattice = lattice_decoder(cascade, many, every).reshape(-1, count, len(specs)).mean(0)
        pixels = pixel_decoder(cascade, many, every).reshape(-1, count).mean(0)
        rows.append((torch.stack(prior, 1), torch.stack(diffusion, 1), lattice, pixels))
    priors, diffusions, lattices, decoders = (torch.stack(column) for column in zip(*rows))
    return Ledger(priors, diffusions, lattices, decoders, 4.0 ** -specs[0].level, source)


def _mixture_kl(
    y: Tensor, coarse: Tensor | None, log_prob: Tensor, gamma: Tensor, eps: Tensor
) -> Tensor:
    """KL( q(z_t | y) || sum over y' with the same coarser integers of P(y' | coarser) q(z_t | y') )
    in nats of every image, (K,), from noise (draws, K, ...)."""
    alpha, sigma = alpha_sigma(gamma)
    y, eps = y.flatten(1) * alpha / sigma, eps.flatten(2)  # in standard deviations of the noise
    known = torch.zeros(len(y), 1) if coarse is None else coarse.flatten(1)
    groups = known.unique(dim=0, return_inverse=True)[1]
    divergence = torch.empty(len(y), dtype=y.dtype)
    for group in range(int(groups.max()) + 1):
        rows = (groups == group).nonzero()[:, 0]
        # what the scale can hold, given the coarser ones
        points, inverse = y[rows].unique(dim=0, return_inverse=True)
        mass = torch.zeros(len(points), dtype=y.dtype).index_add_(0, inverse, log_prob[rows].exp())
        # log p(z_t) - log q(z_t | y) = log sum_y' P(y') exp( -|y - y'|^2 / 2 - (y - y') eps ); the
        # |eps|^2 / 2 of both taken off
        scores = (mass / mass.sum()).log() - torch.cdist(y[rows], points).square() / 2
        found = [
            torch.logsumexp(scores + e @ points.T - (e * y[rows]).sum(-1, keepdim=True), dim=-1)
            for e in eps[:, rows].split(max(1, 2**17 // scores.numel()))
        ]
        divergence[rows] = -torch.cat(found).mean(0)
    return divergence


class Recount(Cascade):
    """A cascade whose `bound` adds up as an accounting says, so that any check of a bound can be
    run on it: `kraft_sum`, `evaluate`.

    The decoder over pixels, where there is one, stands in the last scale's reconstruction; scales
    cannot be scored apart then."""

    def __init__(self, cascade: Cascade, accounting: Accounting):
        super().__init__(
            cascade.map,
            cascade.image_shape,
            [scale.denoiser for scale in cascade.scales],
            [scale.schedule for scale in cascade.scales],
            cascade.max_value,
        )
        self.accounting = accounting

    def bound(self, x: Tensor, generator: torch.Generator, *args, **kwargs) -> Bound:
        """One draw of what the accounting says; arguments of `Cascade.bound`."""
        right = super().bound(x, generator, *args, **kwargs)
        if len(right.names) < len(self.specs):
            raise ValueError("a recount is of whole images: leave `scales` out")
        diffusion, reconstruction = right.diffusion.clone(), right.reconstruction
        if self.accounting.halved:
            diffusion[:, 0] *= 4.0 ** -self.specs[0].level
        if self.accounting.pixels:
            reconstruction = torch.zeros_like(reconstruction)
            reconstruction[:, -1] = pixel_decoder(self, x, _noise(self, len(x), generator)).to(
                reconstruction.dtype
            )
        return Bound(right.names, right.prior, diffusion, reconstruction)


# ---------------------------------------------------------------- a trained model


def started_at(cascade: Cascade, sigma_ratio: float) -> Cascade:
    """The same networks with the noise at t = 0 raised to `sigma_ratio` of the pixels' spacing in
    every scale; linear schedules.

    Raises:
        ValueError: for noise below what the networks were trained on.
    """
    gamma = gamma_for_spacing(_pixels(cascade.image_shape, cascade.max_value), sigma_ratio)
    low = max(float(s.schedule.gamma_min) for s in cascade.scales)
    if gamma < low - 1e-6:
        raise ValueError(
            f"sigma_0 of {sigma_ratio} of a pixel's spacing is gamma {gamma:.2f}: these networks "
            f"were trained from {low:.2f} on"
        )
    schedules = [LinearSchedule(gamma, float(s.schedule.gamma_max)) for s in cascade.scales]
    return cascade.with_schedules(schedules)


@torch.no_grad()
def recount(
    cascade: Cascade,
    images: Tensor,
    *,
    repeats: int = 4,
    times_per_image: int = 4,
    decoder_draws: int = 8,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """One evaluation of a model, added up in every way of `ACCOUNTINGS`: the same draws, so
    differences are well known (`worth`).

    Args:
        images: integers (N, *cascade.image_shape).
        decoder_draws: draws of z_0 an image and repeat for the decoders, which need no network.
    """
    measured = evaluate(
        cascade, images, repeats=repeats, times_per_image=times_per_image, seed=seed
    )
    generator, unit = torch.Generator().manual_seed(seed + 1), math.log(2) * cascade.dims
    lattice, pixels = (
        np.zeros((len(images), repeats, len(cascade.specs))),
        np.zeros((len(images), repeats)),
    )
    for repeat in range(repeats):
        for _ in range(decoder_draws):
            eps = _noise(cascade, len(images), generator)
            lattice[:, repeat] += lattice_decoder(cascade, images, eps).numpy() / (
                unit * decoder_draws
            )
            pixels[:, repeat] += pixel_decoder(cascade, images, eps).numpy() / (
                unit * decoder_draws
            )
    found = {}
    for name, accounting in ACCOUNTINGS.items():
        parts = measured.parts.copy()
        if accounting.halved:
            parts[:, :, 0, 1] *= 4.0 ** -cascade.specs[0].level
        parts[..., 2] = 0.0 if accounting.pixels else lattice
        if accounting.pixels:
            parts[:, :, -1, 2] = pixels
        found[name] = dataclasses.replace(measured, parts=parts)
    return found


def worth(counts: dict[str, Evaluation], name: str) -> Evaluation:
    """What an accounting leaves out, as an `Evaluation` of the differences: its `bpd`, `se_images`
    and `se_noise` are those of the bits missing."""
    if name not in counts:
        raise ValueError(f"unknown accounting {name!r}: one of {', '.join(counts)}")
    return dataclasses.replace(counts["valid"], parts=counts["valid"].parts - counts[name].parts)
