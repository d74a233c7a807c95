"""Hierarchical maps: an image as a sequence of scales, coarsest first (paper, Sect. 4, Eqs. 9-14,
43-44).

A map says four things about an image of shape (C, H, W):

* `specs`: what its scales are, in order;
* `analyse` / `synthesise`: the map on floats, as the paper writes it, h(x) = (z1, ..., zS);
* `analyse_integers` / `synthesise_integers`: the same on integers, exact, no rounding anywhere;
* `to_view` / `from_view`: between the orthonormal coordinates in which noise, densities and losses
  live and the array that a network is shown. For the wavelet both are the same; for the pyramid the
  view is a tight frame.

The integers of one Haar step on a block (a b / c d) are s = a+b+c+d, p = a+b-c-d, q = a-b+c-d, r =
a-b-c+d. At level j (after j steps) an integer times 2^-j is the orthonormal coefficient of the
pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pcdm_lib.maps.scales import Scales, ScaleSpec, image_shape_of


class HierarchicalMap(ABC):
    """What every map shares: checks at the door, and the integer path written once over
    `_split_integers`.

    Args:
        levels: how many times the side is halved, 0 to 10; a map of `levels` has `levels + 1`
            scales (the paper's S).

    Raises:
        ValueError: where `levels` is no whole number from 0 to 10.
    """

    name = "map"
    volume_preserving = True

    def __init__(self, levels: int = 1):
        if isinstance(levels, bool) or not isinstance(levels, int) or not 0 <= levels <= 10:
            raise ValueError(f"levels must be a whole number from 0 to 10, got {levels!r}")
        self.levels = levels

    def __repr__(self) -> str:
        return f"{type(self).__name__}(levels={self.levels})"

    @property
    def num_scales(self) -> int:
        """How many scales there are: the paper's S."""
        return self.levels + 1

    # ---- what the scales are

    def specs(
        self, image_shape: tuple[int, int, int], max_value: int = 255
    ) -> tuple[ScaleSpec, ...]:
        """The scales of images of shape (C, H, W) with pixels 0..max_value, coarsest first.

        Args:
            image_shape: (C, H, W).
            max_value: the largest value of a pixel, 255 for 8 bits.

        Returns:
            One `ScaleSpec` a scale.

        Raises:
            ValueError: where the sides are not divisible by 2^levels, or 32 bits would not hold the
                integers.
        """
        if len(image_shape) != 3:
            raise ValueError(
                f"image_shape must be (channels, height, width), got {tuple(image_shape)}"
            )
        if not 1 <= max_value <= 65535:
            raise ValueError(f"max_value must lie in 1..65535, got {max_value}")
        if max_value * 4 ** (self.levels + 1) >= 2**31:
            raise ValueError(
                f"{self!r} on pixels 0..{max_value} would overflow 32-bit integers: use fewer "
                f"levels"
            )
        channels, height, width = image_shape
        self._check_sides(height, width)
        return self._specs((channels, height, width), max_value)

    def names(self) -> tuple[str, ...]:
        """Names of the scales, coarsest first.

        Returns:
            As many names as scales, "base" first.
        """
        side = 2**self.levels
        return tuple(spec.name for spec in self._specs((1, side, side), 1))

    def log_volume(self, image_shape: tuple[int, int, int]) -> float:
        """1/2 log det(J^T J) in nats of the map on images of that shape: 0 where it preserves
        volume (Lemma 4.1).

        Args:
            image_shape: (C, H, W).

        Returns:
            Nats.
        """
        self.specs(image_shape)
        return 0.0

    # ---- floats

    def analyse(self, x: Tensor) -> Scales:
        """The map h on a batch of float images: h(x) = (z1, ..., zS), Eqs. 11-14.

        Args:
            x: floats (N, C, H, W).

        Returns:
            One array a scale, (N, *spec.view_shape); for the wavelet its coefficients, for the
            pyramid its residuals.

        Raises:
            TypeError: for integers, which `analyse_integers` takes.
            ValueError: for another shape than (N, C, H, W), or sides that do not fit the levels.
        """
        self._check_floats(x)
        return Scales(self.names(), self._analyse(x))

    def synthesise(self, scales: Scales) -> Tensor:
        """Inverse of `analyse`, (N, C, H, W). For a frame it is the transpose, so what lies outside
        the frame's range is projected away.

        Args:
            scales: what `analyse` gives.

        Returns:
            Floats (N, C, H, W).

        Raises:
            TypeError: for integers.
            ValueError: for the scales of another map, or shapes that do not belong together.
        """
        self._check_scales(scales, integers=False)
        return self._synthesise(scales)

    # ---- integers

    def analyse_integers(self, x: Tensor, max_value: int = 255) -> Scales:
        """Exact integer coordinates (int32) of an integer image batch (N, C, H, W) with values
        0..max_value.

        Args:
            x: integers (N, C, H, W) in 0..max_value.
            max_value: the largest value that a pixel can have.

        Returns:
            One array a scale, (N, *spec.shape) int32.

        Raises:
            TypeError: for floats.
            ValueError: for values out of range, or sides that do not fit the levels.
        """
        return Scales(self.names(), [z for z, _ in self.decompose(x, max_value)])

    def decompose(self, x: Tensor, max_value: int = 255) -> list[tuple[Tensor, Tensor | None]]:
        """For each scale its integer coordinates and the integers rebuilt from all coarser scales
        (None for the base): the pair that one conditional diffusion needs, without the other
        scales' networks.

        Args:
            x: integers (N, C, H, W) in 0..max_value.
            max_value: the largest value that a pixel can have.

        Returns:
            A pair (z, coarse) a scale, coarsest first; z (N, *spec.shape) int32, and coarse int32
            or None.

        Raises:
            TypeError: for floats.
            ValueError: as for `analyse_integers`.
        """
        self._check_integers(x, max_value)
        self.specs(image_shape_of(x), max_value)  # refuses what would overflow
        return self._split_integers(x.to(torch.int32))

    def synthesise_integers(self, scales: Scales) -> Tensor:
        """Exact inverse of `analyse_integers`, int32 (N, C, H, W).

        Args:
            scales: what `analyse_integers` gives.

        Returns:
            The images, int32 (N, C, H, W).

        Raises:
            TypeError: for floats.
            ValueError: for the scales of another map, or integers that belong to no image.
        """
        self._check_scales(scales, integers=True)
        coarse: Tensor | None = None
        for index, z in enumerate(scales):
            coarse = self.refine(index, coarse, z)
        assert coarse is not None  # there is always a base
        return coarse

    # ---- to be given by each map

    @abstractmethod
    def refine(self, index: int, coarse: Tensor | None, z: Tensor) -> Tensor:
        """The integers rebuilt from scales 0..index, given those from 0..index-1 and the
        coordinates of scale `index`.

        Args:
            index: of the scale.
            coarse: the integers rebuilt from the coarser scales; None for the base.
            z: integer coordinates of the scale, (N, *spec.shape).

        Returns:
            Integers (N, C, h, w) at the resolution that is reached; the image after the last scale.

        Raises:
            ValueError: where the integers belong to no image.
        """

    @abstractmethod
    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        """Conditioning image of Eqs. 43-44: `coarse` as mean brightness in [-1, 1] at the
        resolution of the scale's view.

        Args:
            spec: the scale that is conditioned.
            coarse: integers rebuilt from the coarser scales, (N, C, h, w).

        Returns:
            Floats (N, *spec.condition_shape).
        """

    @abstractmethod
    def brightness(self, index: int, coarse: Tensor, max_value: int = 255) -> Tensor:
        """The integers rebuilt from scales 0..index as an image in [0, 1], for looking at.

        Args:
            index: of the last scale that `coarse` was rebuilt from.
            coarse: integers (N, C, h, w).
            max_value: the largest value of a pixel.

        Returns:
            Floats (N, C, h, w) in [0, 1].
        """

    def lattice_phase(
        self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None
    ) -> tuple[Tensor, float]:
        """Where the values of the finer image that a scale's (noisy) integers stand for lie between
        whole numbers, at the view's resolution: exact integers without noise.

        Args:
            spec: the scale.
            centre: noisy integers (N, *spec.shape), floats (`ScaleSpec.to_axis`).
            coarse: integers rebuilt from the coarser scales; None for the base.

        Returns:
            The phases (N, phase_channels, h, w), and the factor from the noise of `centre` to that
            of the phase.
        """
        return centre, 1.0

    def phase_channels(self, spec: ScaleSpec) -> int:
        """Channels of `lattice_phase`.

        Args:
            spec: the scale.

        Returns:
            Their number.
        """
        return spec.shape[0]

    def to_view(self, spec: ScaleSpec, coords: Tensor) -> Tensor:
        """Orthonormal coordinates -> what a network sees; an isometry.

        Args:
            spec: the scale.
            coords: orthonormal coordinates (N, *spec.shape).

        Returns:
            (N, *spec.view_shape).
        """
        return coords

    def from_view(self, spec: ScaleSpec, view: Tensor) -> Tensor:
        """Transpose of `to_view`: what a network predicts -> orthonormal coordinates.

        Args:
            spec: the scale.
            view: (N, *spec.view_shape).

        Returns:
            (N, *spec.shape).
        """
        return view

    @abstractmethod
    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        """`specs` after its checks."""

    @abstractmethod
    def _analyse(self, x: Tensor) -> list[Tensor]:
        """`analyse` after its checks, one array a scale."""

    @abstractmethod
    def _synthesise(self, scales: Scales) -> Tensor:
        """`synthesise` after its checks."""

    @abstractmethod
    def _split_integers(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """`decompose` of int32 images, after its checks."""

    # ---- checks at the door

    def _check_sides(self, height: int, width: int) -> None:
        step = 2**self.levels
        if height < 1 or width < 1 or height % step or width % step:
            raise ValueError(
                f"{self!r} needs sides divisible by {step}, got {height}x{width}: crop or pad the "
                f"image"
            )

    def _check_batch(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"expected a torch tensor (N, C, H, W), got {type(x).__name__}: use "
                f"torch.from_numpy"
            )
        if x.ndim != 4:
            raise ValueError(
                f"expected a batch (N, C, H, W), got {x.ndim} dimensions {tuple(x.shape)}: add or "
                f"drop axes"
            )
        if x.numel() == 0:
            raise ValueError(f"the batch is empty: {tuple(x.shape)}")
        self._check_sides(*x.shape[2:])

    def _check_floats(self, x: Tensor) -> None:
        self._check_batch(x)
        if not x.is_floating_point():
            raise TypeError(
                f"analyse wants floats, got {x.dtype}: use analyse_integers, which is exact, or "
                f"convert it"
            )

    def _check_integers(self, x: Tensor, max_value: int) -> None:
        self._check_batch(x)
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"integers wanted, got {x.dtype}: keep images as uint8, or round them yourself"
            )
        # for these torch has no min and max
        if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
            x = x.to(torch.int64)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high > max_value:
            raise ValueError(f"pixel values must lie in 0..{max_value}, got {low}..{high}")

    def _check_scales(self, scales: Scales, integers: bool) -> None:
        if tuple(getattr(scales, "names", ())) != self.names():
            raise ValueError(
                f"{self!r} has the scales {self.names()}, got "
                f"{getattr(scales, 'names', type(scales))}"
            )
        if scales[0].ndim != 4:
            raise ValueError(
                f"every scale must be a batch (N, C, h, w), got a base of {tuple(scales[0].shape)}"
            )
        count, channels, *sides = scales[0].shape
        image_shape = (channels, *(side * 2**self.levels for side in sides))
        for spec, (name, v) in zip(self._specs(image_shape, 1), scales.items()):
            expected = (count, *(spec.shape if integers else spec.view_shape))
            if tuple(v.shape) != expected:
                raise ValueError(
                    f"{name} must have the shape {expected} beside a base of "
                    f"{tuple(scales[0].shape)}, "
                    f"got {tuple(v.shape)}"
                )
            if v.is_floating_point() == integers:
                wanted, other = (
                    ("integers", "synthesise") if integers else ("floats", "synthesise_integers")
                )
                raise TypeError(
                    f"{name} must hold {wanted}, got {v.dtype}: use {other}, or convert it"
                )
