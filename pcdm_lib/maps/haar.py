"""One Haar step on 2x2 blocks, on floats and exactly on integers, and the resampling that goes with
it.

Direct butterflies on slices: additions and subtractions of four views of the array.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bands(NamedTuple):
    """The four coefficient arrays of one Haar step, each (..., H/2, W/2): the sum, then the details
    by rows (p), by columns (q) and by diagonals (r)."""

    s: Tensor
    p: Tensor
    q: Tensor
    r: Tensor


def _whole(x: Tensor) -> Tensor:
    """Integers wide enough for sums of four; uint8 would wrap around."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(
            f"integers wanted, got {x.dtype}: haar_step and its inverse are the same on floats"
        )
    return x.to(torch.int32) if x.dtype.itemsize < 4 else x


def _butterfly(x: Tensor) -> Bands:
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    a, b, c, d = top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]
    row_sum, row_diff, low_sum, low_diff = a + b, a - b, c + d, c - d
    return Bands(row_sum + low_sum, row_sum - low_sum, row_diff + low_diff, row_diff - low_diff)


def interleave(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Blocks (a b / c d) from four arrays (..., h, w), (..., 2h, 2w).

    Args:
        a: the entry at the top left of every block, (..., h, w).
        b: at the top right, same shape.
        c: at the bottom left.
        d: at the bottom right.

    Returns:
        (..., 2h, 2w), of the type of `a`.
    """
    out = a.new_empty(*a.shape[:-2], 2 * a.shape[-2], 2 * a.shape[-1])
    out[..., 0::2, 0::2], out[..., 0::2, 1::2], out[..., 1::2, 0::2], out[..., 1::2, 1::2] = (
        a,
        b,
        c,
        d,
    )
    return out


def haar_step(x: Tensor) -> Bands:
    """One orthonormal Haar step on floats, (..., H, W) -> four bands (..., H/2, W/2).

    Source: Eq. 14 of the paper, with the 2x2 filters of Haar.

    Args:
        x: floats (..., H, W) with even sides.

    Returns:
        The bands s, p, q, r, each (..., H/2, W/2).

    Raises:
        TypeError: for integers, which `haar_step_integers` takes.

    Example:
        >>> from pcdm_lib.maps.haar import haar_step
        >>> bands = haar_step(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> [float(band) for band in bands]
        [5.0, -2.0, -1.0, 0.0]
    """
    if not x.is_floating_point():
        raise TypeError(
            f"haar_step wants floats, got {x.dtype}: use haar_step_integers, or convert it"
        )
    return Bands(*(band / 2 for band in _butterfly(x)))


def haar_step_inverse(bands: Bands) -> Tensor:
    """Inverse of `haar_step`, which is its transpose.

    Args:
        bands: s, p, q, r, floats (..., h, w) each.

    Returns:
        (..., 2h, 2w).
    """
    s, p, q, r = bands
    return interleave(
        *(v / 2 for v in (s + p + q + r, s + p - q - r, s - p + q - r, s - p - q + r))
    )


def haar_step_integers(x: Tensor) -> Bands:
    """One unscaled Haar step on integers: exact, and the orthonormal coefficients are the result
    halved.

    Args:
        x: integers (..., H, W) with even sides.

    Returns:
        The bands s, p, q, r, each (..., H/2, W/2), int32 or wider.

    Raises:
        TypeError: for floats.
    """
    return _butterfly(_whole(x))


def haar_step_integers_inverse(bands: Bands) -> Tensor:
    """Inverse of `haar_step_integers`.

    Args:
        bands: s, p, q, r, integers (..., h, w) each.

    Returns:
        Integers (..., 2h, 2w).

    Raises:
        TypeError: for floats.
        ValueError: where s+p+q+r is not divisible by 4 or the parities differ, that is where the
            integers belong to no image.
    """
    s, p, q, r = (_whole(band) for band in bands)
    blocks = (s + p + q + r, s + p - q - r, s - p + q - r, s - p - q + r)
    if any(bool((v & 3).any()) for v in blocks):
        raise ValueError(
            "these integers belong to no image: p = s, q = s (mod 2) and s+p+q+r = 0 (mod 4) must "
            "hold "
            "in every block; decode them with pcdm_lib.maps.lattice"
        )
    return interleave(*(torch.div(v, 4, rounding_mode="floor") for v in blocks))


def upsample(x: Tensor) -> Tensor:
    """Each entry repeated over its 2x2 block, (..., h, w) -> (..., 2h, 2w).

    Args:
        x: (..., h, w).

    Returns:
        (..., 2h, 2w), of the same type.
    """
    return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
