"""Score matching and the earth mover's distance: what holds of Theorem 5.1 (paper, Sect. 5.2, Eqs.
26-28), with constants.

Let f be the error of the score, f_s its part in scale s, in orthonormal coordinates, and W(f) the
earth mover's distance of f (`pcdm_lib.transport.exact`). Training minimises sum_s w_s |f_s|_2^2.

As printed, the theorem sets this sum against W itself. No constant can do that: with eps f in place
of f, the sum falls with eps^2, the distance with eps. What holds, on images of H x W pixels with
Haar's scales at L levels, is

    W(f)   <= sum_s C_s |f_s|_2                                                            (1)
    W(f)^2 <= C^2 sum_s w_s |f_s|_2^2,        C^2 = sum_s C_s^2 / w_s                      (2)

where, for the Euclidean ground distance and equal mass,

    details of level j:           C_j^2 = H W 2^(2j-3)                                     (3)
    base (level L, zero mean):    C_0^2 = H W (H^2 + W^2 - 2 * 4^L) / 12                   (4)
    all, with all w_s = 1:        C^2   = H W (H^2 + W^2 - 2) / 12, whatever L             (5)

The proof, how sharp the constants are, and what changes with the "l1" ground distance and with
`create_cost`: docs/theory.md, "The bound that holds, with its constants".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.diffusion.terms import add_noise
from pcdm_lib.maps.scales import Scales
from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.transport.exact import _check_options, exact_emd, rounding_unit
from pcdm_lib.transport.wavelets import _check_shapes, wavelet_emd_of_scales


def haar_cost(level: int, band: str) -> float:
    """Exact cost, in pixels times the coefficient, of the image of one orthonormal Haar coefficient
    of band "p", "q" or "r" at a level >= 1.

    The block has side 2h, h = 2^(level-1), and values of size v / 2h. For p (rows) and q (columns)
    each pixel of one half, in all a mass of v h, goes h pixels on, and u = that coordinate shows
    that nothing is cheaper: h^2. For r (diagonal) a pixel at i and k pixels from the middle lines
    goes to its mirror image over the nearer one, by 2 min(i, k) + 1; the function of that size
    over two, with the sign of the quadrant, shows that nothing is
    cheaper: v / 2h * 2 sum_(i,k < h) (2 min(i, k) + 1) = (2 h^2 + 1) / 3. Both hold for "euclidean"
    and "l1", all moves being along the axes.

    Args:
        level: of the coefficient, 1 for the finest.
        band: "p", "q" or "r".

    Returns:
        The cost, a number.

    Raises:
        ValueError: for another level or band.
    """
    if level < 1 or band not in ("p", "q", "r"):
        raise ValueError(
            f"a Haar detail has a level from 1 and a band p, q or r, got {level} and {band!r}"
        )
    half = 2.0 ** (level - 1)
    return (2 * half**2 + 1) / 3 if band == "r" else half**2


class ScaleConstants(NamedTuple):
    """C_s of the bound (1), in pixels: of the mean (0 without `create_cost`, where the mass must be
    equal), and of all scales, coarsest first."""

    mean: float
    scales: np.ndarray


def scale_constants(
    shape: tuple[int, int],
    levels: int,
    *,
    metric: str = "euclidean",
    create_cost: float | None = None,
) -> ScaleConstants:
    """The proven constants C_s of W(f) <= C_mean |f_mean|_2 + sum_s C_s |f_s|_2 on images of shape
    (H, W); derivation: docs/theory.md.

    The base is without its mean.

    Args:
        shape: (H, W).
        levels: of Haar's wavelet.
        metric: ground distance between pixels, "euclidean" or "l1".
        create_cost: what creating or destroying a unit of mass costs, in pixels; None for equal
            mass.

    Returns:
        Constants in pixels, coarsest scale first.

    Raises:
        ValueError: where the sides do not fit the levels, or for another metric.

    Example:
        >>> from pcdm_lib.transport import scale_constants
        >>> scale_constants((32, 32), levels=1).scales.round(2).tolist()
        [417.23, 22.63]
    """
    _check_options(metric, create_cost, "auto")
    HaarWavelet(levels).specs((1, *shape))
    pixels, h, w = math.prod(shape), *(side >> levels for side in shape)
    spread = (h**2 + w**2 - 2) / 6 + (
        0 if metric == "euclidean" else 2 * (h**2 - 1) * (w**2 - 1) / (9 * h * w)
    )
    squares = [pixels * 4.0**levels * spread / 2]
    for level in range(levels, 0, -1):
        block = (
            2 * 16.0 ** (level - 1)
            if metric == "euclidean"
            else sum(haar_cost(level, band) ** 2 for band in "pqr")
        )
        squares.append(pixels / 4**level * block)
    if create_cost is None:
        return ScaleConstants(0.0, np.sqrt(squares))
    everything = create_cost * math.sqrt(pixels)
    return ScaleConstants(everything, np.minimum(np.sqrt(squares), everything))


class TransportBound(NamedTuple):
    """Both sides of Theorem 5.1 for the errors of N images with C channels each; distances in mass
    times pixels.

    Attributes:
        norms: |f_s|_2, (S, N, C), coarsest first, the base with its mean: the roots of what
            training minimises.
        squares: sum_s w_s |f_s|_2^2, (N, C): the left-hand side of the theorem.
        exact: W(f), (N, C): `exact_emd` of the error.
        wavelet: Haar's wavelet distance of the error, (N, C), C1 = 1, full depth, and C0 such that
            a quarter of it is at least W.
        by_scales: sum_s C_s |f_s|_2, (N, C): the right-hand side of (1).
        constant: C of (2).
    """

    norms: np.ndarray
    squares: np.ndarray
    exact: np.ndarray
    wavelet: np.ndarray
    by_scales: np.ndarray
    constant: float

    @property
    def bound(self) -> np.ndarray:
        """C sqrt(sum_s w_s |f_s|^2), (N, C): at least `exact`; the form that holds, with the root
        on the side of the squares."""
        return self.constant * np.sqrt(self.squares)

    @property
    def printed_constant(self) -> np.ndarray:
        """W / sum_s w_s |f_s|^2, (N, C): what the printed form would need as its constant. Grows as
        1/eps with eps f; nan for f = 0."""
        with np.errstate(invalid="ignore"):
            return self.exact / self.squares

    @property
    def tightness(self) -> np.ndarray:
        """W / bound, (N, C), between 0 and 1; nan for f = 0."""
        with np.errstate(invalid="ignore"):
            return self.exact / self.bound


def transport_bound(
    scales: Scales | Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    metric: str = "euclidean",
    create_cost: float | None = None,
    solver: str = "auto",
    exact: np.ndarray | None = None,
) -> TransportBound:
    """Theorem 5.1 for an error given by its scales, every image and channel by itself.

    For channels together add their distances: sum_c W_c <= sqrt(channels) C sqrt(sum_c squares_c).

    Source: Theorem 5.1 of the paper, in the form that holds (docs/theory.md).

    Args:
        scales: the error in orthonormal coordinates of `HaarWavelet`, coarsest first: (N, C, h, w),
            then (N, 3C, h, w), (N, 3C, 2h, 2w), ...; for the pyramid too (its `from_view` leads
            there).
        weights: w_s > 0, one a scale; by default 1, the plain squared error.
        metric: ground distance between pixels, "euclidean" or "l1".
        create_cost: lambda in pixels; needed unless the error has no mass.
        solver: as for `exact_emd`.
        exact: W(f), (N, C), where it is known from an earlier call (other weights, or the same
            error split into other scales).

    Returns:
        Both sides of the theorem, (N, C) each.

    Raises:
        ValueError: for other shapes, or weights that are not positive. Also what `exact_emd`
            raises.

    Example:
        >>> error = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> scales = pcdm.HaarWavelet(levels=1).analyse(error)
        >>> found = pcdm.transport_bound(scales, create_cost=2.0, solver="lp")
        >>> bool((found.exact <= found.bound).all())
        True
    """
    given = [v.detach().cpu() for v in scales]
    _check_shapes(given[0], given[1:])
    values, rounding = [v.double() for v in given], max(rounding_unit(v.dtype) for v in given)
    w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(values),) or not bool((w > 0).all() and np.isfinite(w).all()):
        raise ValueError(
            f"weights must be {len(values)} positive numbers, one a scale, got {weights}"
        )
    levels = len(values) - 1
    haar = HaarWavelet(levels)
    error = haar.synthesise(Scales(haar.names(), values))
    if exact is None:
        exact = np.asarray(
            exact_emd(
                error,
                torch.zeros_like(error),
                metric=metric,
                create_cost=create_cost,
                solver=solver,
                rounding=rounding,
            )
        )
    elif np.shape(exact) != tuple(error.shape[:2]):
        raise ValueError(
            f"exact must hold one distance an image and channel, {tuple(error.shape[:2])}, got "
            f"{np.shape(exact)}"
        )
    shape = (error.shape[2], error.shape[3])
    constants = scale_constants(shape, levels, metric=metric, create_cost=create_cost)
    mean = values[0].mean(dim=(2, 3), keepdim=True)
    parts = np.stack([_norm(values[0] - mean), *map(_norm_of_bands, values[1:])])
    mean_norm = mean.abs().squeeze((2, 3)).numpy() * math.sqrt(values[0][0, 0].numel())
    norms = np.concatenate([np.hypot(parts[:1], mean_norm), parts[1:]])
    squared = (constants.scales**2 / w).sum() + constants.mean**2 / w[0]
    if create_cost is not None:
        squared = min(squared, constants.mean**2 / w.min())
    side = 2 ** math.ceil(math.log2(max(shape)))
    wavelet = wavelet_emd_of_scales(
        values, c0=0.0 if create_cost is None else 4 * create_cost / side
    ).numpy()
    return TransportBound(
        norms,
        np.einsum("s,snc->nc", w, norms**2),
        exact,
        wavelet,
        np.einsum("s,snc->nc", constants.scales, parts) + constants.mean * mean_norm,
        math.sqrt(squared),
    )


def _norm(v: Tensor) -> np.ndarray:
    return v.flatten(2).norm(dim=2).numpy()


def _norm_of_bands(v: Tensor) -> np.ndarray:
    return _norm(v.unflatten(1, (3, -1)).transpose(1, 2).flatten(2, 3))


@torch.no_grad()
def score_errors(
    cascade: Cascade,
    x: Tensor,
    gammas: Sequence[float],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> list[Scales]:
    """What training squares: eps - eps_hat of every scale at each noise level, in orthonormal
    coordinates; `transport_bound` takes it as it is.

    The error of the score is -1 / sigma times this, in units of the image scaled to [-1, 1];
    sigma^2 = sigmoid(gamma). It is the error against the score of q(z_t | x), as in the loss, and
    not against that of q(z_t), which nobody knows for photographs: that error is the mean of this
    one given z_t, and since W is convex its mean distance is at most the mean distance here
    (Jensen). Every scale is shown the exact coarser one.

    Args:
        cascade: the model.
        x: integer images (N, *image_shape).
        gammas: log noise-to-signal ratios common to all scales, as Theorem 5.1 has it, within every
            schedule's range.
        generator: each scale draws its noise once, for all levels.
        dtype: of the computation; the networks' weights must have it.

    Returns:
        One `Scales` a level, named as the map's.

    Raises:
        ValueError: for a gamma that some schedule does not reach.

    Example:
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> images = pcdm.load_data("photos").heldout[:1]
        >>> pcdm.score_errors(model, images, [0.0], torch.Generator().manual_seed(0))
        [Scales(base: (1, 3, 16, 16) torch.float32, details1: (1, 9, 16, 16) torch.float32)]
    """
    cascade.check_diffusion("the bound on the distance")
    low, high = (
        pick(float(end(s)) for s in cascade.schedules)
        for pick, end in ((max, lambda s: s.gamma_min), (min, lambda s: s.gamma_max))
    )
    outside = [gamma for gamma in gammas if not low <= gamma <= high]
    if outside:
        raise ValueError(
            f"gamma must lie in [{low:.4g}, {high:.4g}], where all scales were trained, got "
            f"{', '.join(f'{g:g}' for g in outside)}"
        )
    rows = []
    for index, (spec, (z, coarse)) in enumerate(zip(cascade.specs, cascade.decompose(x))):
        y = spec.to_float(z, dtype)
        eps = torch.randn(y.shape, generator=generator, device=y.device, dtype=dtype)
        levels = (
            torch.full((len(y),), float(gamma), device=y.device, dtype=dtype) for gamma in gammas
        )
        rows.append(
            [
                eps - cascade.scales[index].denoiser(add_noise(y, gamma, eps), gamma, coarse)
                for gamma in levels
            ]
        )
    return [Scales(tuple(spec.name for spec in cascade.specs), errors) for errors in zip(*rows)]
