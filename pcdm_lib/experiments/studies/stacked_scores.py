"""Is the score of a noisy image made of the scores of its scales? (Paper, Lemma A.2, Eq. 31.)

Let y = (y_1, ..., y_S) be the orthonormal coordinates of an image's scales, coarsest first, and
z = alpha y + sigma eps all of them at one noise level. Two fields have the name "score" here:

    joint      d/dz_s log q(z)               = (alpha E[y_s | z] - z_s) / sigma^2
    stacked    d/dz_s log q(z_s | y_<s)      = (alpha E[y_s | z_s, y_<s] - z_s) / sigma^2

The joint one is the score of the noisy image: the map being orthonormal, it is h of the gradient
by pixels. The stacked one is what the networks of a cascade learn: scale s sees its own noisy
coordinates and the *clean* coarser scales. They differ by

    alpha / sigma^2 (E[y_s | z_s, y_<s] - E[y_s | z]).

With two scales both differences are gaps between posterior means of nested information, so by the
law of total variance, with mmse(u | v) = E |u - E[u | v]|^2,

    base       E |difference|^2 sigma^4 / alpha^2 = mmse(y_1 | z_1) - mmse(y_1 | z)       >= 0
    details    E |difference|^2 sigma^4 / alpha^2 = mmse(y_2 | z) - mmse(y_2 | z_2, y_1)  >= 0

(z_1 adds nothing to y_1, and z holds more than z_1.) The base of the stack knows too little, its
details know too much. In the units of eps, where a difference is multiplied by sigma, half the
integral over gamma = log sigma^2 / alpha^2 of details less base is

    E log [ q(z_1) q(z_2 | y_1) / q(z_1, z_2) ] = I(y_1; z_2 | z_1),

by the relation of information and mean square error (Guo, Shamai and Verdu 2005). These are the
bits that a count with a noisy coarse scale in its decoder leaves out (docs/likelihood.md, Sect. 4).

None of this touches the bound: Eq. 15 is the chain rule on integers, and a scale may be shown clean
what was decoded before it.

    python -m pcdm_lib.experiments.studies.stacked_scores
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import alpha_sigma
from pcdm_lib.likelihood.enumerable import EnumeratedSource, ExactDenoiser, example_source
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.scales import Scales
from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.transport.exact import exact_emd

CHUNK = 4096  # noisy images that are compared with all images of the source at once
NOISE = (0.05, 0.1, 0.166, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # sigma / alpha in spacings of pixels


class Draws(NamedTuple):
    """Noisy images of a source.

    Attributes:
        gamma: log sigma^2 / alpha^2.
        images: clean integer images (N, C, H, W).
        noisy: z of every scale, in orthonormal coordinates, coarsest first, float64.
    """

    gamma: float
    images: Tensor
    noisy: list[Tensor]


class Gap(NamedTuple):
    """How far the stacked scores are from the score of the noisy image.

    Energies are in the units of eps (a score times sigma, squared), so a scale of D coordinates of
    pure noise has D; each has its Monte-Carlo standard error.

    Attributes:
        score: E |sigma joint|^2 of the whole image.
        difference: E |sigma (stacked - joint)|^2 by scale, (S,).
        score_error, difference_error: their standard errors.
    """

    score: float
    score_error: float
    difference: Tensor
    difference_error: Tensor

    @property
    def relative(self) -> Tensor:
        """The difference of every scale as a part of the whole score's energy, (S,)."""
        return self.difference / self.score


def gamma_of_noise(source: EnumeratedSource, ratio: float) -> float:
    """gamma at which sigma / alpha is `ratio` times the spacing of pixels, which is 2 / max_value
    in an image scaled to [-1, 1]."""
    if not 0 < ratio < math.inf:
        raise ValueError(f"the ratio of noise to spacing must be positive and finite, got {ratio}")
    return 2.0 * math.log(ratio * 2.0 / source.max_value)


def draw_noisy(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap,
    gamma: float,
    draws: int,
    seed: int = 0,
) -> Draws:
    """`draws` independent images of a source, with independent noise of one level in every scale.

    Raises:
        ValueError: for a map that does not preserve volume: its coordinates are not orthonormal.
    """
    if not hierarchy.volume_preserving:
        raise ValueError(
            f"{hierarchy!r} does not preserve volume, so its scales have no common density: use "
            f"HaarWavelet or LaplacianPyramid"
        )
    generator = torch.Generator().manual_seed(seed)
    images = source.images[source.draw(draws, generator)]
    alpha, sigma = alpha_sigma(torch.tensor(gamma, dtype=torch.float64))
    noisy = [
        alpha * y + sigma * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        for y in _coordinates(source, hierarchy, images)
    ]
    return Draws(gamma, images, noisy)


def _coordinates(
    source: EnumeratedSource, hierarchy: HierarchicalMap, images: Tensor
) -> list[Tensor]:
    """Orthonormal coordinates of every scale of integer images, float64."""
    specs = hierarchy.specs(source.image_shape, source.max_value)
    pairs = hierarchy.decompose(images, source.max_value)
    return [spec.to_float(z, torch.float64) for spec, (z, _) in zip(specs, pairs)]


def joint_scores(
    source: EnumeratedSource, hierarchy: HierarchicalMap, drawn: Draws
) -> list[Tensor]:
    """Score of the noisy image, d/dz log q(z), by enumeration of all images; one array a scale."""
    points = torch.cat([y.flatten(1) for y in _coordinates(source, hierarchy, source.images)], 1)
    flat = torch.cat([z.flatten(1) for z in drawn.noisy], 1)
    alpha, sigma = alpha_sigma(torch.tensor(drawn.gamma, dtype=torch.float64))
    mean = torch.cat(
        [
            torch.softmax(source.log_prob + _log_likelihood(part, points, drawn.gamma), 1) @ points
            for part in flat.split(CHUNK)
        ]
    )
    score = (alpha * mean - flat) / sigma**2
    parts = score.split([z[0].numel() for z in drawn.noisy], dim=1)
    return [part.reshape(z.shape) for part, z in zip(parts, drawn.noisy)]


def _log_likelihood(z: Tensor, points: Tensor, gamma: float) -> Tensor:
    """log N(z; alpha y, sigma^2) of every pair, (N, K), less the constant of the normal law."""
    alpha, sigma = alpha_sigma(torch.tensor(gamma, dtype=z.dtype))
    return -torch.cdist(z, alpha * points).square() / (2 * sigma**2)


def stacked_scores(
    source: EnumeratedSource, hierarchy: HierarchicalMap, drawn: Draws
) -> list[Tensor]:
    """Scores of the scales given the clean coarser ones, d/dz_s log q(z_s | y_<s), one array a
    scale: what the networks of a cascade would be if they were exact."""
    specs = hierarchy.specs(source.image_shape, source.max_value)
    gamma = torch.full((len(drawn.images),), drawn.gamma, dtype=torch.float64)
    sigma = alpha_sigma(gamma[0])[1]
    found = []
    for spec, (_, coarse), z in zip(
        specs, hierarchy.decompose(drawn.images, source.max_value), drawn.noisy
    ):
        eps = ExactDenoiser(source, hierarchy, spec)(z, gamma, coarse)
        found.append(-eps / sigma)
    return found


def score_gap(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap | None = None,
    ratio: float = 0.5,
    draws: int = 65536,
    seed: int = 0,
) -> Gap:
    """Expected squared norms of the score of a noisy image and of what the stack of its scales'
    scores differs by.

    Args:
        hierarchy: a volume-preserving map, one wavelet step by default.
        ratio: sigma / alpha in spacings of pixels.
    Example:
        >>> gap = score_gap(example_source(), ratio=0.5, draws=64)
        >>> len(gap.difference)  # base, details
        2
    """
    hierarchy = hierarchy or HaarWavelet(1)
    drawn = draw_noisy(source, hierarchy, gamma_of_noise(source, ratio), draws, seed)
    sigma = float(alpha_sigma(torch.tensor(drawn.gamma, dtype=torch.float64))[1])
    joint = joint_scores(source, hierarchy, drawn)
    stacked = stacked_scores(source, hierarchy, drawn)
    whole = torch.cat([(sigma * v).flatten(1) for v in joint], 1).square().sum(1)
    apart = torch.stack(
        [(sigma * (s - v)).square().flatten(1).sum(1) for s, v in zip(stacked, joint)], 1
    )
    root = math.sqrt(draws)
    return Gap(float(whole.mean()), float(whole.std() / root), apart.mean(0), apart.std(0) / root)


def hidden_bits(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap | None = None,
    ratio: float = 0.5,
    draws: int = 65536,
    seed: int = 0,
) -> tuple[float, float]:
    """E log2 [ prod_s q(z_s | y_<s) / q(z) ] in bits per dimension, and its standard error, from
    densities alone. With two scales it is I(y_1; z_2 | z_1)."""
    hierarchy = hierarchy or HaarWavelet(1)
    drawn = draw_noisy(source, hierarchy, gamma_of_noise(source, ratio), draws, seed)
    clean = _coordinates(source, hierarchy, source.images)
    points, flat = [y.flatten(1) for y in clean], [z.flatten(1) for z in drawn.noisy]
    own = _row_of(source, drawn.images)
    parts = []
    for rows in torch.arange(draws).split(CHUNK):
        ratios = torch.zeros(len(rows), dtype=torch.float64)
        total = source.log_prob.repeat(len(rows), 1)
        alike = torch.ones(len(rows), len(points[0]), dtype=torch.bool)  # coarser scales agree
        for y, z in zip(points, flat):
            law = _log_likelihood(z[rows], y, drawn.gamma)
            known = source.log_prob.masked_fill(~alike, -math.inf)
            ratios += torch.logsumexp(known + law, 1) - torch.logsumexp(known, 1)
            total = total + law
            alike &= (y == y[own[rows]][:, None]).all(-1)
        parts.append(ratios - torch.logsumexp(total, 1))
    bits = torch.cat(parts) / (math.log(2) * math.prod(source.image_shape))
    return float(bits.mean()), float(bits.std() / math.sqrt(draws))


def _row_of(source: EnumeratedSource, images: Tensor) -> Tensor:
    """Where every image stands in the source's list."""
    both = torch.cat([source.images, images]).flatten(1)
    names = torch.unique(both, dim=0, return_inverse=True)[1]
    place = torch.empty(int(names.max()) + 1, dtype=torch.long)
    count = len(source.images)
    place[names[:count]] = torch.arange(count)
    return place[names[count:]]


def transport_gap(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap | None = None,
    ratio: float = 0.5,
    draws: int = 256,
    seed: int = 0,
    create_cost: float = 1.0,
) -> tuple[float, float]:
    """Mean earth mover's distances of sigma (stacked - joint) and of sigma joint, as images.

    The first is the left-hand side of Eq. 33 for a cascade whose networks are exact. Its right-hand
    side, the norms of the scales' errors, is 0 then, so no constant serves.

    Args:
        create_cost: of a unit of mass, in pixels (`exact_emd`): a score has mass of its own.
    """
    hierarchy = hierarchy or HaarWavelet(1)
    drawn = draw_noisy(source, hierarchy, gamma_of_noise(source, ratio), draws, seed)
    sigma = float(alpha_sigma(torch.tensor(drawn.gamma, dtype=torch.float64))[1])
    joint = joint_scores(source, hierarchy, drawn)
    stacked = stacked_scores(source, hierarchy, drawn)
    specs = hierarchy.specs(source.image_shape, source.max_value)
    means = []
    for field in ([s - v for s, v in zip(stacked, joint)], joint):
        views = [hierarchy.to_view(spec, sigma * v) for spec, v in zip(specs, field)]
        image = hierarchy.synthesise(Scales(hierarchy.names(), views))
        distances = exact_emd(image, torch.zeros_like(image), create_cost=create_cost, solver="lp")
        means.append(float(np.mean(distances)))
    return means[0], means[1]


def table(
    noise: tuple[float, ...] = NOISE, draws: int = 65536, distances: int = 256, seed: int = 0
) -> str:
    """The test source of 2x2 images by one wavelet step, as a Markdown table, a row a level of
    noise."""
    source = example_source()
    lines = [
        "| noise in spacings | base | details | whole | distance | hidden bits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ratio in noise:
        gap = score_gap(source, ratio=ratio, draws=draws, seed=seed)
        near, far = transport_gap(source, ratio=ratio, draws=distances, seed=seed)
        bits = hidden_bits(source, ratio=ratio, draws=draws, seed=seed)[0]
        base, details = gap.relative.tolist()
        lines.append(
            f"| {ratio:g} | {base:.4f} | {details:.4f} | {base + details:.4f} | {near / far:.3f} | "
            f"{bits:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
