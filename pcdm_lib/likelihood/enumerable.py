"""Small sources whose every image can be listed, and the exact posterior-mean denoiser for them.

With that denoiser the continuous-time bound equals the entropy of the source, so whatever else it
reads is a mistake in the accounting (docs/likelihood.md, Sect. 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pcdm_lib.diffusion.schedule import LinearSchedule, Schedule, alpha_sigma
from pcdm_lib.diffusion.terms import gamma_for_spacing
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.scales import ScaleSpec, image_shape_of
from pcdm_lib.maps.standard import Identity
from pcdm_lib.models.cascade import Cascade, evaluation_mode


class EnumeratedSource:
    """A probability mass function over listed integer images.

    Args:
        images: (K, C, H, W) integers, all different.
        log_weights: (K,) log-probabilities up to a constant, nats.
        max_value: the largest value of a pixel.
    """

    def __init__(self, images: Tensor, log_weights: Tensor, max_value: int):
        self.images = images.to(torch.int32)
        self.log_prob = torch.log_softmax(log_weights.double(), dim=0)
        self.max_value = max_value

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return image_shape_of(self.images)

    @property
    def entropy_bits_per_dim(self) -> float:
        """Entropy in bits a dimension: no code does better on average."""
        return float(
            -(self.log_prob.exp() * self.log_prob).sum() / math.log(2) / math.prod(self.image_shape)
        )

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices of n independent images, (n,).

        Args:
            n: how many.
            generator: of the draw.

        Returns:
            Indices into `images`, (n,) int64.
        """
        return torch.multinomial(self.log_prob.exp(), n, replacement=True, generator=generator)


def all_images(side: int, levels: int) -> Tensor:
    """Every one-channel image of side x side with grey levels 0..levels-1, (levels^(side^2), 1,
    side, side) int32.

    Args:
        side: of the square images.
        levels: grey levels.

    Returns:
        (levels^(side^2), 1, side, side) int32.

    Raises:
        ValueError: for more than 2^20 images.
    """
    count = side * side
    if levels**count > 2**20:
        raise ValueError(f"{levels}^{count} images are too many to list")
    codes = torch.arange(levels**count)
    digits = [(codes // levels**k) % levels for k in range(count)]
    return torch.stack(digits, dim=1).reshape(-1, 1, side, side).to(torch.int32)


def example_source() -> EnumeratedSource:
    """The 2x2 source with levels 0..3 of docs/likelihood.md, Sect. 4; its entropy is 1.5485 bits a
    dimension.

    Returns:
        256 images and their probabilities.

    Example:
        >>> from pcdm_lib.likelihood import example_source
        >>> round(example_source().entropy_bits_per_dim, 4)
        1.5485
    """
    images = all_images(2, 4)
    a, b, c, d = images.flatten(1).double().unbind(1)
    return EnumeratedSource(
        images, -0.5 * ((a - b) ** 2 + (a - c) ** 2 + (b - d) ** 2 + (c - d) ** 2) + 0.3 * a, 3
    )


def ising_source(side: int = 4, coupling: float = 0.6, field: float = 0.15) -> EnumeratedSource:
    """Binary images in which neighbours like to agree: 65,536 of them at side 4, for cascades of
    three scales.

    Args:
        side: of the square images.
        coupling: how much neighbours like to agree, in nats a pair.
        field: how much a pixel likes to be 1, in nats.

    Returns:
        2^(side^2) images and their probabilities.
    """
    images = all_images(side, 2)
    spin = 2.0 * images[:, 0].double() - 1.0
    energy = (spin[:, 1:] * spin[:, :-1]).sum((1, 2)) + (spin[:, :, 1:] * spin[:, :, :-1]).sum(
        (1, 2)
    )
    return EnumeratedSource(images, coupling * energy + field * spin.sum((1, 2)), 1)


class ExactDenoiser:
    """eps_hat from the posterior mean E[y | z_t, coarser] over all images of a source, for one
    scale of a map.

    Works in the view of the map (the wavelet's coordinates, the pyramid's residual), so that a map
    whose view were no isometry would be found out.

    Args:
        source: the images and their probabilities.
        hierarchy: the map.
        spec: the scale, of `hierarchy.specs`.
        chunk: noisy images that are compared with all candidates at a time.
    """

    def __init__(
        self,
        source: EnumeratedSource,
        hierarchy: HierarchicalMap,
        spec: ScaleSpec,
        chunk: int = 512,
    ):
        z, coarse = hierarchy.decompose(source.images, source.max_value)[spec.index]
        key = (
            z.flatten(1) if coarse is None else torch.cat([coarse.flatten(1), z.flatten(1)], dim=1)
        )
        # images that this scale cannot tell apart
        unique, inverse = torch.unique(key, dim=0, return_inverse=True)
        weight = torch.zeros(len(unique), dtype=torch.float64).index_add_(
            0, inverse, source.log_prob.exp()
        )
        split = 0 if coarse is None else coarse[0].numel()
        self.map, self.spec, self.chunk = hierarchy, spec, chunk
        self.log_weight = weight.log()
        coords = spec.to_float(unique[:, split:].reshape(-1, *spec.shape), torch.float64)
        self.candidates = hierarchy.to_view(spec, coords).flatten(1)
        # `unique` is sorted, so the candidates that share their coarser integers stand together
        keys, counts = (
            torch.unique_consecutive(unique[:, :split], dim=0, return_counts=True)
            if split
            else (unique[:1, :0], [len(unique)])
        )
        ends = [0, *torch.as_tensor(counts).cumsum(0).tolist()]
        self.groups = {tuple(key): slice(*ends[i : i + 2]) for i, key in enumerate(keys.tolist())}

    def __call__(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        """eps_hat of every noisy image.

        Args:
            z_t: noisy orthonormal coordinates (N, *spec.shape).
            gamma: log sigma^2 / alpha^2, (N,).
            coarse: integers rebuilt from the coarser scales; None for the base.

        Returns:
            (N, *spec.shape), of the type of z_t.

        Raises:
            ValueError: for coarser integers that no image of the source has.
        """
        view = self.map.to_view(self.spec, z_t.double())
        flat, gamma = view.flatten(1), gamma.double().reshape(-1, 1)
        given = flat[:, :0].int() if coarse is None else coarse.flatten(1)
        keys, inverse = (
            _distinct_rows(given) if coarse is not None else (given[:1], flat.new_zeros(len(flat)))
        )
        mean = torch.empty_like(flat)
        for index, key in enumerate(keys.tolist()):
            if tuple(key) not in self.groups:
                raise ValueError(f"no image of the source has the coarser integers {key}")
            for rows in (inverse == index).nonzero()[:, 0].split(self.chunk):
                mean[rows] = self._posterior_mean(flat[rows], gamma[rows], self.groups[tuple(key)])
        alpha, sigma = alpha_sigma(gamma)
        eps = ((flat - alpha * mean) / sigma).reshape(view.shape)
        return self.map.from_view(self.spec, eps).to(z_t.dtype)

    def _posterior_mean(self, flat: Tensor, gamma: Tensor, group: slice) -> Tensor:
        alpha, sigma = alpha_sigma(gamma)
        y = self.candidates[group]
        # -|z_t - alpha y|^2 / 2 sigma^2 up to a constant
        score = (alpha * (flat @ y.T) - alpha**2 * (y**2).sum(1) / 2) / sigma**2 + self.log_weight[
            group
        ]
        return torch.softmax(score, dim=1) @ y


def _distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.unique(rows, dim=0, return_inverse=True)` of integers (N, D). Each row is read as one
    number where it fits: sorting rows took a third of the time of a bound."""
    low, high = (int(v) for v in rows.aminmax()) if rows.numel() else (0, 0)
    base, digits = high - low + 1, rows.shape[1]
    if base**digits >= 2**62:
        return torch.unique(rows, dim=0, return_inverse=True)
    places = torch.tensor([base**k for k in reversed(range(digits))], dtype=torch.int64)
    numbers = ((rows.long() - low) * places.to(rows.device)).sum(1)
    inverse = torch.unique(numbers, return_inverse=True)[1]
    keys = rows.new_empty(int(inverse.max()) + 1 if len(rows) else 0, digits)
    keys[inverse] = rows
    return keys, inverse


def exact_cascade(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap | None = None,
    sigma_ratio: float = 0.166,
    gamma_max: float = 8.0,
    schedule: Schedule | Sequence[Schedule] | None = None,
) -> Cascade:
    """The cascade of `hierarchy` (one scale by default) with the exact denoiser at every scale.

    Args:
        source: the images and their probabilities.
        hierarchy: the map; one scale by default.
        sigma_ratio: noise at t = 0 as a part of the pixel spacing, the same in all orthonormal
            coordinates.
        gamma_max: log noise-to-signal ratio at t = 1.
        schedule: noise levels in place of these two, one for all scales or one a scale.

    Returns:
        The cascade.

    Example:
        >>> from pcdm_lib.likelihood import example_source, exact_cascade
        >>> exact_cascade(example_source(), pcdm.HaarWavelet(levels=1)).names
        ('base', 'details1')
    """
    hierarchy = hierarchy or Identity()
    specs = hierarchy.specs(source.image_shape, source.max_value)
    if schedule is None:
        pixel = Identity().specs(source.image_shape, source.max_value)[0]
        schedule = LinearSchedule(gamma_for_spacing(pixel, sigma_ratio), gamma_max)
    denoisers = [ExactDenoiser(source, hierarchy, spec) for spec in specs]
    return Cascade(hierarchy, source.image_shape, denoisers, schedule, source.max_value)


@torch.no_grad()
def code_lengths(
    cascade: Cascade,
    source: EnumeratedSource,
    draws: int,
    seed: int = 0,
    steps: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The bound on every image of a source, and its standard error.

    Args:
        cascade: whose denoisers work in `dtype`.
        source: the images.
        draws: stratified times an image, at least 2 for a standard error.
        seed: of times and noise.
        steps: None for continuous time, T for the T-step model.
        dtype: of the computation.

    Returns:
        Nats and their standard errors, (K,) each.
    """
    generator = torch.Generator().manual_seed(seed)
    images = source.images
    totals = []
    with evaluation_mode(cascade):
        for draw in range(draws):
            # image k meets every stratum of [0, 1) once over the draws
            offset = torch.rand(len(cascade.specs), len(images), generator=generator, dtype=dtype)
            t = ((draw + offset) / draws).clamp(max=1 - 1e-7)
            totals.append(cascade.bound(images, generator, steps, times=t, dtype=dtype).total)
    stacked = torch.stack(totals)
    # neighbouring strata in pairs: the variance of a stratified mean, with the slope across strata
    # mostly removed
    pairs = (stacked[0 : 2 * (draws // 2) : 2] - stacked[1 : 2 * (draws // 2) : 2]) ** 2 / 4
    return stacked.mean(0), torch.sqrt(pairs.mean(0) * 2 / draws)


def kraft_sum(
    cascade: Cascade,
    source: EnumeratedSource,
    draws: int = 200,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[float, float]:
    """Sum over all images of 2^-(code length), and its standard error. At most 1 for code lengths
    that could be paid.

    Everything is scored in float64: give a network's weights that type first (`cascade.double()`).
    exp being convex, noise of variance v in a code length raises its term by the factor exp(v / 2);
    that factor is taken off.

    Source: Kraft's inequality; docs/likelihood.md, Sect. 4.

    Args:
        cascade: in float64.
        source: the images, all that the cascade can code.
        draws: stratified times an image.
        seed: of times and noise.
        steps: None for continuous time, T for the T-step model.

    Returns:
        The sum and its standard error.

    Example:
        >>> from pcdm_lib.likelihood import example_source, exact_cascade
        >>> source = example_source()
        >>> total, error = pcdm.kraft_sum(exact_cascade(source), source, draws=50)
        >>> total < 1 + 3 * error
        True
    """
    lengths, errors = code_lengths(cascade, source, draws, seed, steps)
    mass = torch.exp(-lengths)
    return float((mass * torch.exp(-(errors**2) / 2)).sum()), float(
        torch.sqrt(((mass * errors) ** 2).sum())
    )
