"""What a scale of a map is, and the named arrays of all scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScaleSpec:
    """What one scale of a map is, for one shape of image.

    `shape` is the shape of its coordinates, band-major: all channels of the first band, then of the
    next. An integer coordinate z stands for the orthonormal coordinate `gain * z + shift` of the
    image scaled to [-1, 1].

    Attributes:
        name: "base", "details1", ...
        index: place among the scales, 0 for the base.
        kind: "pixels", "sum" or "details": which lattice its integers live on (lattice.py).
        level: halvings of the image's side; for "details" the level of the step that made them.
        bands: names of its bands.
        shape: of its coordinates, (bands*C, h, w).
        view_shape: of what a network sees, (channels, height, width).
        condition_shape: of the conditioning image (Eq. 44); None for the base.
        max_value: the largest value of a pixel.
        gain: orthonormal units an integer.
        shift: orthonormal coordinate of the integer 0.
    """

    name: str
    index: int
    kind: str  # "pixels" | "sum" | "details": which lattice its integers live on (lattice.py)
    level: int  # halvings of the image's side; for "details" the level of the step that made them
    bands: tuple[str, ...]
    shape: tuple[int, int, int]
    view_shape: tuple[int, int, int]
    condition_shape: tuple[int, int, int] | None
    max_value: int
    gain: float
    shift: float

    @property
    def dims(self) -> int:
        """Number of coordinates, which for a volume-preserving map is the number of degrees of
        freedom."""
        return math.prod(self.shape)

    def to_float(self, z: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Integer coordinates -> orthonormal coordinates of the image scaled to [-1, 1].

        Args:
            z: integers (N, *shape).
            dtype: of the result.

        Returns:
            (N, *shape).
        """
        return z.to(dtype) * self.gain + self.shift

    def to_axis(self, z_t: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy orthonormal coordinates z_t = alpha y + sigma eps -> (centre, tau) on the axis of
        the integers, with centre = z + tau eps.

        Args:
            z_t: (N, *shape).
            gamma: log sigma^2 / alpha^2, broadcastable to z_t.

        Returns:
            centre (N, *shape) in units of an integer, and tau, of the shape of gamma.
        """
        ratio = torch.exp(gamma / 2)  # sigma / alpha
        return (z_t * torch.sqrt(1 + ratio**2) - self.shift) / self.gain, ratio / self.gain

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """(N, bands*C, h, w) -> one (N, C, h, w) array a band, by name.

        Args:
            z: (N, bands*C, h, w).

        Returns:
            One array (N, C, h, w) a band, by its name and in decoding order.
        """
        return dict(zip(self.bands, z.chunk(len(self.bands), dim=1)))


def image_shape_of(images: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of a batch of images (N, C, H, W).

    Args:
        images: (N, C, H, W).

    Returns:
        Three integers.
    """
    return cast("tuple[int, int, int]", tuple(images.shape[1:]))


class Scales:
    """The named arrays of all scales, coarsest first: h(x) = (z1, ..., zS) of the paper, Sect. 4.

    `scales[0]` is the base; `scales["details1"]` goes by name.

    Args:
        names: one a scale.
        values: arrays (N, ...), one a scale.

    Raises:
        ValueError: where names and arrays differ in number.

    Example:
        >>> scales = pcdm.HaarWavelet(levels=2).analyse(torch.rand(1, 3, 8, 8))
        >>> scales.names
        ('base', 'details2', 'details1')
        >>> scales["details1"].shape
        torch.Size([1, 9, 4, 4])
    """

    def __init__(self, names: tuple[str, ...], values: tuple[Tensor, ...] | list[Tensor]):
        if len(names) != len(values):
            raise ValueError(f"{len(names)} names for {len(values)} arrays: give one array a scale")
        self.names = tuple(names)
        self.values = tuple(values)

    def __getitem__(self, key: int | str) -> Tensor:
        return self.values[self.names.index(key) if isinstance(key, str) else key]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.values)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs (name, array), coarsest first.

        Returns:
            An iterator over them.
        """
        return zip(self.names, self.values)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> Scales:
        """The same names with `fn` of every array.

        Args:
            fn: from an array to an array.

        Returns:
            New `Scales`.
        """
        return Scales(self.names, [fn(v) for v in self.values])

    def __repr__(self) -> str:
        return (
            "Scales(" + ", ".join(f"{n}: {tuple(v.shape)} {v.dtype}" for n, v in self.items()) + ")"
        )
