"""The wavelet form of the earth mover's distance (Shirdhonkar and Jacobs 2008), in linear time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.advice import Later
from pcdm_lib.maps.haar import haar_step
from pcdm_lib.maps.scales import Scales
from pcdm_lib.transport.exact import Array, _numbers

pywt: Any = Later("pywt")
STRIP = 2**18  # numbers that are transformed at a time: two megabytes


class Ratios(NamedTuple):
    """`wavelet_emd` over the exact Euclidean distance for equal mass: least, median and greatest of
    the cases measured, and the largest there is."""

    low: float
    median: float
    high: float
    largest: float


# Measured, not proven, but for `largest`: by wavelet and side, defaults of `wavelet_emd`, on 1,000
# differences each of blobs, white noise and shifted images
# (pcdm_lib/experiments/studies/emd_cases.py says which; seed 0; `python -m benchmarks.transport`
# measures them anew). `largest` is exact to its four digits: both distances are norms, so no
# difference of equal masses has a larger ratio than some pair of pixels, and all pairs were
# compared. It doubles with the side for Haar (10 side - 12), grows by three quarters for coif1, and
# by about 36 a doubling for coif2: on these sides bounded for none, in keeping with arXiv
# 2411.12153, whose equivalence is for orders below 1. With C0 = 0 the ratios of coif1 and coif2
# spread more (greatest over least 3.3 and 3.4 at side 32, where C0 = 1 has 2.8 and 3.1 on the same
# 180 cases).
RATIOS: dict[str, dict[int, Ratios]] = {
    "haar": {
        8: Ratios(4.703, 11.27, 35.65, 68),
        16: Ratios(5.334, 13.0, 36.42, 148),
        32: Ratios(5.416, 14.1, 31.79, 308),
    },
    "coif1": {
        8: Ratios(9.144, 19.0, 50.32, 98.29),
        16: Ratios(12.37, 21.05, 47.42, 182.3),
        32: Ratios(11.99, 22.58, 46.0, 322.0),
    },
    "coif2": {
        8: Ratios(14.64, 22.36, 49.38, 82.58),
        16: Ratios(11.54, 22.73, 46.02, 117.2),
        32: Ratios(13.7, 24.85, 49.11, 153.8),
    },
}


# ---------------------------------------------------------------- by wavelets
def wavelet_emd(
    f: Array,
    wavelet: str = "haar",
    *,
    levels: int | None = None,
    c0: float = 1.0,
    c1: float = 1.0,
    p: float = 1.0,
) -> float | np.ndarray:
    """Wavelet earth mover's distance of differences f (..., H, W), in mass times pixels^p, in time
    linear in the pixels.

        C0 2^(L(p + n/2)) |approximation_L|_1
            + C1 sum_(level=1)^L 2^(level(p + n/2)) |details_level|_1,        n = 2

    (Shirdhonkar and Jacobs 2008; paper, Lemma A.1, Eq. 29. There n is said to be the image's height
    or width; it is the dimension of the domain.)

    Conventions. Coefficients are those of the orthonormal wavelets on the pixel grid, of the image
    continued by zeros (so that nothing wraps round the border, as it would in a periodic
    transform). Level 1 is the finest; its wavelets live on 2x2 pixels for Haar. The literature
    counts j upwards to the finer and weighs with 2^(-j(p + n/2)). Here j = -level, because a pixel
    is the unit of length; with the side N = 2^J as the unit, j = J - level, continuous coefficients
    are N times the discrete ones, and the same formula gives the same distance divided by N (p =
    1). So the finest level of an N-pixel image is j = J - 1 in units of the side, j = -1 in pixels.
    The approximation's factor 2^(L(p + n/2)) is the literature's factor 1 at j = 0.

    What is proven, for p = c1 = 1, full depth, Haar and equal mass, against `exact_emd` with either
    metric: on an image within 2^L x 2^L pixels,

        4 W(f) <= wavelet_emd(f) <= (10 2^L - 12) W(f)     (right-hand side for L >= 1),

    both attained. Left: a coefficient v of level j is mass |v| 2^j/2 that can be moved by 2^j/2
    pixels, so W <= 4^(j-1) |v|, with equality for one coefficient of the row or column kind
    (`bound.haar_cost`); sum. Right: both are norms, so the largest ratio is that of a dipole,
    and a dipole of length >= 1 has at most 6 * 2^j in each level j < L, where its ends meet
    different wavelets, and 4 * 2^L in the last; one pixel's step over the middle of the image,
    distance 1, has all of it. This is how Haar misses translations: no constant serves all sides.
    With `create_cost` lambda, W <= wavelet_emd(f, c0=4 lambda / 2^L) / 4. Smoother wavelets are
    better: see `RATIOS`.

    Args:
        f: differences, (..., H, W), of either sign.
        wavelet: an orthogonal one of PyWavelets: haar, db2, sym4, coif1, coif2, ...
        levels: L; by default ceil(log2 max(H, W)), where Haar's approximation is one number, the
            mass times 2^-L.
        c0: weight of what the details do not see; with Haar at full depth mass costs C0 2^L a unit.
            coif2 with C0 = 0 is in use elsewhere.
        c1: weight of the details.
        p: order of the ground distance |x - y|^p, 0 < p <= 1.

    Returns:
        A float for one image, else an array (...).

    Raises:
        ValueError: a wavelet that is unknown or not orthogonal, levels < 0, p outside (0, 1], f not
            finite.

    Example:
        >>> f = np.zeros((4, 4))
        >>> f[0, 0], f[3, 0] = 1.0, -1.0  # one unit of mass, three pixels apart
        >>> round(pcdm.wavelet_emd(f), 6)
        28.0
    """
    total = sum(
        weight * np.abs(band).sum(axis=(-2, -1))
        for weight, band in weighted_bands(f, wavelet, levels=levels, c0=c0, c1=c1, p=p)
    )
    return float(total) if np.ndim(total) == 0 else total


def weighted_bands(
    f: Array,
    wavelet: str = "haar",
    *,
    levels: int | None = None,
    c0: float = 1.0,
    c1: float = 1.0,
    p: float = 1.0,
) -> Iterator[tuple[float, np.ndarray]]:
    """What `wavelet_emd` adds up: weights and coefficients (..., h, w), every one once: strips of
    bands, finest first, the approximation last.

    Args:
        f: differences (..., H, W).
        wavelet: an orthogonal one of PyWavelets.
        levels: L, see `wavelet_emd`.
        c0: weight of the approximation.
        c1: weight of the details.
        p: order of the ground distance, 0 < p <= 1.

    Yields:
        Pairs (weight, coefficients).

    Raises:
        ValueError: as for `wavelet_emd`.
    """
    values = _numbers(f, "the difference").astype(np.float64)
    depth = _depth(values.shape, levels, p)
    try:
        filters = pywt.Wavelet(wavelet)
    except ValueError as error:
        raise ValueError(f"unknown wavelet {wavelet!r}: {error}") from None
    if not filters.orthogonal:
        raise ValueError(
            f"the wavelet {wavelet!r} is not orthogonal: its coefficients do not measure mass; "
            f"use haar, db, sym or coif"
        )
    for level in range(1, depth + 1):
        strips = []
        for approximation, details in _strips(values, filters):
            strips.append(approximation)
            yield from ((c1 * 2 ** (level * (p + 1)), band) for band in details)
        values = np.concatenate(strips, axis=-2)
    yield c0 * 2 ** (depth * (p + 1)), values


def _strips(values: np.ndarray, filters: Any) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """One step of the transform of images (..., H, W), strip by strip of about `STRIP` numbers:
    approximation and the three bands of some rows.

    Row k of a band takes rows 2k + 2 - n to 2k + 1 of the image, n the (even) length of the filter.
    In strips nothing outgrows a processor's cache, without which the time would grow faster than
    the pixels.
    """
    length, height = filters.dec_len, values.shape[-2]
    rows, at_once = (height + length - 1) // 2, max(length, STRIP * height // (2 * values.size))
    for first in range(0, rows, at_once):
        last = min(first + at_once, rows)
        start = max(0, 2 * first + 2 - length)
        approximation, details = pywt.dwt2(
            values[..., start : 2 * last, :], filters, mode="zero", axes=(-2, -1)
        )
        ours = slice(first - start // 2, last - start // 2)
        yield approximation[..., ours, :], [band[..., ours, :] for band in details]


def wavelet_emd_of_scales(
    scales: Scales | Sequence[Tensor],
    *,
    levels: int | None = None,
    c0: float = 1.0,
    c1: float = 1.0,
    p: float = 1.0,
) -> Tensor:
    """`wavelet_emd(..., "haar")` from the scales of `HaarWavelet.analyse`, without going back to
    pixels; differentiable.

    Types shorter than float32 are added up in float32.

    Args:
        scales: orthonormal coordinates, coarsest first: (N, C, h, w), then (N, 3C, h, w), (N, 3C,
            2h, 2w), ...
        levels: depth; the base is transformed on from the map's depth to this one, by default until
            it is one number.
        c0: weight of the approximation, C0 of `wavelet_emd`.
        c1: weight of the details.
        p: order of the ground distance, 0 < p <= 1.

    Returns:
        (N, C), in mass times pixels^p.

    Raises:
        ValueError: for other shapes, for values that are not finite, and for fewer levels than the
            scales have.
    """
    base, *details = list(scales)
    _check_shapes(base, details)
    base, *details = (v.float() if torch.finfo(v.dtype).bits < 32 else v for v in (base, *details))
    depth = _depth(tuple(side * 2 ** len(details) for side in base.shape[-2:]), levels, p)
    if depth < len(details):
        raise ValueError(
            f"the scales have {len(details)} levels, which levels={depth} is less than"
        )
    total = base.new_zeros(base.shape[:2])
    for level, bands in zip(range(len(details), 0, -1), details):
        total = total + c1 * 2 ** (level * (p + 1)) * bands.unflatten(1, (3, -1)).abs().sum(
            dim=(1, 3, 4)
        )
    for level in range(len(details) + 1, depth + 1):
        padded = torch.nn.functional.pad(base, (0, base.shape[-1] % 2, 0, base.shape[-2] % 2))
        base, *details_of_step = haar_step(padded)
        total = total + c1 * 2 ** (level * (p + 1)) * sum(
            band.abs().sum(dim=(2, 3)) for band in details_of_step
        )
    return total + c0 * 2 ** (depth * (p + 1)) * base.abs().sum(dim=(2, 3))


def _depth(shape: tuple[int, ...], levels: int | None, p: float) -> int:
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1], got {p}: |x - y|^p is no distance beyond")
    if levels is not None and (
        isinstance(levels, bool) or not isinstance(levels, int) or levels < 0
    ):
        raise ValueError(f"levels must be a whole number from 0, or None for all, got {levels!r}")
    return math.ceil(math.log2(max(shape[-2:]))) if levels is None else levels


def _check_shapes(base: Tensor, details: Sequence[Tensor]) -> None:
    if base.ndim != 4 or not all(v.is_floating_point() for v in (base, *details)):
        raise ValueError(
            f"the base must be floats (N, C, h, w), got {tuple(base.shape)} {base.dtype}: give "
            f"the scales of HaarWavelet.analyse"
        )
    count, channels, height, width = base.shape
    for index, v in enumerate(details):
        expected = (count, 3 * channels, height * 2**index, width * 2**index)
        if tuple(v.shape) != expected:
            raise ValueError(
                f"scale {index + 1} must have the shape {expected} beside a base of "
                f"{tuple(base.shape)}, got {tuple(v.shape)}: "
                "coarsest first, three bands a channel"
            )
    if not all(bool(v.isfinite().all()) for v in (base, *details)):
        raise ValueError("the scales hold values that are not finite")
