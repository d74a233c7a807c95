"""Hierarchical maps: an image as a sequence of scales, coarsest first (paper, Sect. 4, Eqs. 9-14, 43-44).

A map says four things about an image of shape (C, H, W):

* `specs`: what its scales are, in order;
* `analyse` / `synthesise`: the map on floats, as the paper writes it, h(x) = (z1, ..., zS);
* `analyse_integers` / `synthesise_integers`: the same on integers, exact, no rounding anywhere;
* `to_view` / `from_view`: between the orthonormal coordinates in which noise, densities and losses live and the
  array that a network is shown. For the wavelet both are the same; for the pyramid the view is a tight frame.

The integers of one Haar step on a block (a b / c d) are s = a+b+c+d, p = a+b-c-d, q = a-b+c-d, r = a-b-c+d. At level j
(after j steps) an integer times 2^-j is the orthonormal coefficient of the pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pcdm_lib.haar import (Bands, haar_step, haar_step_integers, haar_step_integers_inverse, haar_step_inverse, interleave,
                           upsample)
from pcdm_lib.scales import Scales, ScaleSpec


class HierarchicalMap(ABC):
    """What every map shares: checks at the door, and the integer path written once over `_split_integers`.

    Args:
        levels: how many times the side is halved; a map of `levels` has `levels + 1` scales (the paper's S).
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
        return self.levels + 1

    # ---- what the scales are

    def specs(self, image_shape: tuple[int, int, int], max_value: int = 255) -> tuple[ScaleSpec, ...]:
        """The scales of images of shape (C, H, W) with pixels 0..max_value, coarsest first."""
        if len(image_shape) != 3:
            raise ValueError(f"image_shape must be (channels, height, width), got {tuple(image_shape)}")
        if not 1 <= max_value <= 65535:
            raise ValueError(f"max_value must lie in 1..65535, got {max_value}")
        if max_value * 4 ** (self.levels + 1) >= 2**31:
            raise ValueError(f"{self!r} on pixels 0..{max_value} would overflow 32-bit integers: use fewer levels")
        self._check_sides(*image_shape[1:])
        return self._specs(tuple(image_shape), max_value)

    def names(self) -> tuple[str, ...]:
        """Names of the scales, coarsest first."""
        side = 2**self.levels
        return tuple(spec.name for spec in self._specs((1, side, side), 1))

    def log_volume(self, image_shape: tuple[int, int, int]) -> float:
        """1/2 log det(J^T J) in nats of the map on images of that shape: 0 where it preserves volume (Lemma 4.1)."""
        self.specs(image_shape)
        return 0.0

    # ---- floats

    def analyse(self, x: Tensor) -> Scales:
        """h(x) of Eq. 9 for a float image batch (N, C, H, W)."""
        self._check_floats(x)
        return Scales(self.names(), self._analyse(x))

    def synthesise(self, scales: Scales) -> Tensor:
        """Inverse of `analyse`, (N, C, H, W). For a frame it is the transpose, so what lies outside the frame's range is
        projected away."""
        self._check_scales(scales, integers=False)
        return self._synthesise(scales)

    # ---- integers

    def analyse_integers(self, x: Tensor, max_value: int = 255) -> Scales:
        """Exact integer coordinates (int32) of an integer image batch (N, C, H, W) with values 0..max_value."""
        return Scales(self.names(), [z for z, _ in self.decompose(x, max_value)])

    def decompose(self, x: Tensor, max_value: int = 255) -> list[tuple[Tensor, Tensor | None]]:
        """For each scale its integer coordinates and the integers rebuilt from all coarser scales (None for the base):
        the pair that one conditional diffusion needs, without the other scales' networks."""
        self._check_integers(x, max_value)
        self.specs(tuple(x.shape[1:]), max_value)  # refuses what would overflow
        return self._split_integers(x.to(torch.int32))

    def synthesise_integers(self, scales: Scales) -> Tensor:
        """Exact inverse of `analyse_integers`, int32 (N, C, H, W)."""
        self._check_scales(scales, integers=True)
        coarse = None
        for index, z in enumerate(scales):
            coarse = self.refine(index, coarse, z)
        return coarse

    # ---- to be given by each map

    @abstractmethod
    def refine(self, index: int, coarse: Tensor | None, z: Tensor) -> Tensor:
        """The integers rebuilt from scales 0..index, given those from 0..index-1 and the coordinates of scale `index`."""

    @abstractmethod
    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        """Conditioning image of Eqs. 43-44: `coarse` as mean brightness in [-1, 1] at the resolution of the scale's view."""

    @abstractmethod
    def brightness(self, index: int, coarse: Tensor, max_value: int = 255) -> Tensor:
        """The integers rebuilt from scales 0..index as an image in [0, 1], for looking at."""

    def lattice_phase(self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None) -> tuple[Tensor, float]:
        """Where the values of the finer image that a scale's (noisy) integers stand for lie between whole numbers, at the view's
        resolution: exact integers without noise. Second, the factor from the noise of `centre` to that of the phase."""
        return centre, 1.0

    def phase_channels(self, spec: ScaleSpec) -> int:
        """Channels of `lattice_phase`."""
        return spec.shape[0]

    def to_view(self, spec: ScaleSpec, coords: Tensor) -> Tensor:
        """Orthonormal coordinates -> what a network sees; an isometry."""
        return coords

    def from_view(self, spec: ScaleSpec, view: Tensor) -> Tensor:
        """Transpose of `to_view`: what a network predicts -> orthonormal coordinates."""
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
            raise ValueError(f"{self!r} needs sides divisible by {step}, got {height}x{width}: crop or pad the image")

    def _check_batch(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a torch tensor (N, C, H, W), got {type(x).__name__}: use torch.from_numpy")
        if x.ndim != 4:
            raise ValueError(f"expected a batch (N, C, H, W), got {x.ndim} dimensions {tuple(x.shape)}: add or drop axes")
        if x.numel() == 0:
            raise ValueError(f"the batch is empty: {tuple(x.shape)}")
        self._check_sides(*x.shape[2:])

    def _check_floats(self, x: Tensor) -> None:
        self._check_batch(x)
        if not x.is_floating_point():
            raise TypeError(f"analyse wants floats, got {x.dtype}: use analyse_integers, which is exact, or convert it")

    def _check_integers(self, x: Tensor, max_value: int) -> None:
        self._check_batch(x)
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"integers wanted, got {x.dtype}: keep images as uint8, or round them yourself")
        if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # for these torch has no min and max
            x = x.to(torch.int64)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high > max_value:
            raise ValueError(f"pixel values must lie in 0..{max_value}, got {low}..{high}")

    def _check_scales(self, scales: Scales, integers: bool) -> None:
        if tuple(getattr(scales, "names", ())) != self.names():
            raise ValueError(f"{self!r} has the scales {self.names()}, got {getattr(scales, 'names', type(scales))}")
        if scales[0].ndim != 4:
            raise ValueError(f"every scale must be a batch (N, C, h, w), got a base of {tuple(scales[0].shape)}")
        count, channels, *sides = scales[0].shape
        image_shape = (channels, *(side * 2**self.levels for side in sides))
        for spec, (name, v) in zip(self._specs(image_shape, 1), scales.items()):
            expected = (count, *(spec.shape if integers else spec.view_shape))
            if tuple(v.shape) != expected:
                raise ValueError(f"{name} must have the shape {expected} beside a base of {tuple(scales[0].shape)}, "
                                 f"got {tuple(v.shape)}")
            if v.is_floating_point() == integers:
                wanted, other = ("integers", "synthesise") if integers else ("floats", "synthesise_integers")
                raise TypeError(f"{name} must hold {wanted}, got {v.dtype}: use {other}, or convert it")


class HaarWavelet(HierarchicalMap):
    """Orthonormal 2-D Haar wavelet: the base is the approximation after `levels` steps, each finer scale the three detail
    bands (p, q, r) of one step (paper, Sect. 4.2). At `levels=0` it is the identity up to the name."""

    name = "wavelet"

    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        channels, height, width = image_shape
        unit, deepest = 2.0 / max_value, 2**self.levels
        base = (channels, height // deepest, width // deepest)
        specs = [ScaleSpec("base", 0, "sum", self.levels, ("s",), base, base, None, max_value,
                           unit / deepest, -float(deepest))]
        for index, level in enumerate(range(self.levels, 0, -1), start=1):
            side = 2**level
            grid = (height // side, width // side)
            shape = (3 * channels, *grid)
            specs.append(ScaleSpec(self._detail_name(level), index, "details", level, ("p", "q", "r"), shape,
                                   self._detail_view(shape), self._condition_shape(channels, grid), max_value, unit / side, 0.0))
        return tuple(specs)

    def _detail_name(self, level: int) -> str:
        return f"details{level}"

    def _detail_view(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape

    def _condition_shape(self, channels: int, grid: tuple[int, int]) -> tuple[int, int, int]:
        return (channels, *grid)

    def _analyse(self, x: Tensor) -> list[Tensor]:
        details = []
        for _ in range(self.levels):
            x, *pqr = haar_step(x)
            details.append(torch.cat(pqr, dim=1))
        return [x, *reversed(details)]

    def _synthesise(self, scales: Scales) -> Tensor:
        x = scales[0]
        for details in scales.values[1:]:
            x = haar_step_inverse(Bands(x, *details.chunk(3, dim=1)))
        return x

    def _split_integers(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for _ in range(self.levels):
            x, *pqr = haar_step_integers(x)
            pairs.append((torch.cat(pqr, dim=1), x))
        return [(x, None), *reversed(pairs)]

    def refine(self, index: int, coarse: Tensor | None, z: Tensor) -> Tensor:
        return z if index == 0 else haar_step_integers_inverse(Bands(coarse, *z.chunk(3, dim=1)))

    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        return coarse.to(torch.get_default_dtype()) * (2.0 / (spec.max_value * 4**spec.level)) - 1.0

    def brightness(self, index: int, coarse: Tensor, max_value: int = 255) -> Tensor:
        return coarse.to(torch.get_default_dtype()) / (max_value * 4 ** (self.levels - index))

    def lattice_phase(self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None) -> tuple[Tensor, float]:
        if spec.kind != "details":
            return centre, 1.0
        return torch.cat(self._finer(centre, coarse), dim=1), math.sqrt(3) / 4

    def phase_channels(self, spec: ScaleSpec) -> int:
        return 4 * spec.shape[0] // 3 if spec.kind == "details" else spec.shape[0]

    def _finer(self, centre: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four values (a, b, c, d) of every block that the coarse sums and (noisy) details stand for."""
        s, (p, q, r) = coarse.to(centre.dtype), centre.chunk(3, dim=1)
        return (s + p + q + r) / 4, (s + p - q - r) / 4, (s - p + q - r) / 4, (s - p - q + r) / 4


class LaplacianPyramid(HaarWavelet):
    """Laplacian pyramid with the norm-preserving 2x2 resampling of the paper: d = the Haar approximation, u = its transpose.

    The residual y - u(d(y)) is the orthogonal projection of y on the span of the details, so the map is a tight frame: all
    singular values are 1, and its latent has more entries than dimensions. Its orthonormal coordinates (and its integers)
    are those of the wavelet; what a network sees and predicts is the residual, C channels at the finer resolution.
    """

    name = "laplacian"

    def _detail_name(self, level: int) -> str:
        return f"residual{level}"

    def _detail_view(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (shape[0] // 3, 2 * shape[1], 2 * shape[2])

    def _condition_shape(self, channels: int, grid: tuple[int, int]) -> tuple[int, int, int]:
        return (channels, 2 * grid[0], 2 * grid[1])

    def _analyse(self, x: Tensor) -> list[Tensor]:
        residuals = []
        for _ in range(self.levels):
            approximation = haar_step(x).s
            residuals.append(x - upsample(approximation) / 2)
            x = approximation
        return [x, *reversed(residuals)]

    def _synthesise(self, scales: Scales) -> Tensor:
        x = scales[0]
        for residual in scales.values[1:]:
            x = residual + upsample((x - haar_step(residual).s) / 2)
        return x

    def to_view(self, spec: ScaleSpec, coords: Tensor) -> Tensor:
        if spec.kind != "details":
            return coords
        p, q, r = coords.chunk(3, dim=1)
        return haar_step_inverse(Bands(torch.zeros_like(p), p, q, r))

    def from_view(self, spec: ScaleSpec, view: Tensor) -> Tensor:
        return torch.cat(haar_step(view)[1:], dim=1) if spec.kind == "details" else view

    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        return upsample(super().condition_image(spec, coarse))

    def lattice_phase(self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None) -> tuple[Tensor, float]:
        if spec.kind != "details":
            return centre, 1.0
        return interleave(*self._finer(centre, coarse)), math.sqrt(3) / 4

    def phase_channels(self, spec: ScaleSpec) -> int:
        return spec.view_shape[0]


class StandardCascade(HierarchicalMap):
    """The usual cascade (Eq. 10, Appendix C): each coarser scale is every second pixel of the next, the finest is the whole
    image. It has more entries than the image has pixels and does not preserve volume: every coarse pixel is paid again."""

    name = "standard"
    volume_preserving = False

    def log_volume(self, image_shape: tuple[int, int, int]) -> float:
        self.specs(image_shape)
        # J^T J is diagonal: a pixel kept by j of the subsamplings appears 1 + j times
        share = [4.0**-j - (4.0 ** -(j + 1) if j < self.levels else 0.0) for j in range(self.levels + 1)]
        return 0.5 * math.prod(image_shape) * sum(f * math.log1p(j) for j, f in enumerate(share))

    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        channels, height, width = image_shape
        specs = []
        for index, level in enumerate(range(self.levels, -1, -1)):
            shape = (channels, height >> level, width >> level)
            name = "base" if index == 0 else f"image{level}"
            specs.append(ScaleSpec(name, index, "pixels", level, ("x",), shape, shape, shape if index else None,
                                   max_value, 2.0 / max_value, -1.0))
        return tuple(specs)

    def _analyse(self, x: Tensor) -> list[Tensor]:
        return [x[..., :: 2**level, :: 2**level] for level in range(self.levels, -1, -1)]

    def _synthesise(self, scales: Scales) -> Tensor:
        return scales[-1]

    def _split_integers(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        images = self._analyse(x)
        return list(zip(images, [None, *images[:-1]]))

    def refine(self, index: int, coarse: Tensor | None, z: Tensor) -> Tensor:
        return z

    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        return upsample(coarse).to(torch.get_default_dtype()) * (2.0 / spec.max_value) - 1.0

    def brightness(self, index: int, coarse: Tensor, max_value: int = 255) -> Tensor:
        return coarse.to(torch.get_default_dtype()) / max_value


class Identity(StandardCascade):
    """One scale, the image itself: with it the cascade is a variational diffusion model (VDM)."""

    name = "identity"
    volume_preserving = True

    def __init__(self, levels: int = 0):
        if levels != 0:
            raise ValueError(f"Identity has one scale, so levels=0; got {levels!r}")
        super().__init__(0)


MAPS: dict[str, type[HierarchicalMap]] = {m.name: m for m in (HaarWavelet, LaplacianPyramid, StandardCascade, Identity)}


def make_map(name: str, levels: int) -> HierarchicalMap:
    """The map of that name. Raises ValueError for a name that is not one of `MAPS`."""
    if name not in MAPS:
        raise ValueError(f"unknown map {name!r}: one of {', '.join(MAPS)}")
    return MAPS[name](levels)
