"""The standard cascade's map, which is not volume-preserving (Eq. 10, Appendix C), and the identity
of a single scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdm_lib.maps.haar import upsample
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.laplacian import LaplacianPyramid
from pcdm_lib.maps.scales import Scales, ScaleSpec
from pcdm_lib.maps.wavelet import HaarWavelet


class Subsampling(HierarchicalMap):
    """The usual cascade (Eq. 10, Appendix C): each coarser scale is every second pixel of the next,
    the finest is the whole image. It has more entries than the image has pixels and does not
    preserve volume: every coarse pixel is paid again.

    Args:
        levels: how many times the side is halved, 0 to 10.

    Example:
        >>> cascade = pcdm.Subsampling(levels=1)
        >>> cascade.analyse_integers(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
        Scales(base: (2, 3, 4, 4) torch.int32, image0: (2, 3, 8, 8) torch.int32)
        >>> cascade.volume_preserving, round(cascade.log_volume((3, 8, 8)), 2)
        (False, 16.64)
    """

    name = "standard"
    volume_preserving = False

    def log_volume(self, image_shape: tuple[int, int, int]) -> float:
        self.specs(image_shape)
        # J^T J is diagonal: a pixel kept by j of the subsamplings appears 1 + j times
        share = [
            4.0**-j - (4.0 ** -(j + 1) if j < self.levels else 0.0) for j in range(self.levels + 1)
        ]
        return 0.5 * math.prod(image_shape) * sum(f * math.log1p(j) for j, f in enumerate(share))

    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        channels, height, width = image_shape
        specs = []
        for index, level in enumerate(range(self.levels, -1, -1)):
            shape = (channels, height >> level, width >> level)
            name = "base" if index == 0 else f"image{level}"
            specs.append(
                ScaleSpec(
                    name,
                    index,
                    "pixels",
                    level,
                    ("x",),
                    shape,
                    shape,
                    shape if index else None,
                    max_value,
                    2.0 / max_value,
                    -1.0,
                )
            )
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


class Identity(Subsampling):
    """One scale, the image itself: with it the cascade is a variational diffusion model (VDM).

    Source: Sect. 6.1, the baseline VDM (Kingma et al. 2021).

    Args:
        levels: 0, for one scale.

    Raises:
        ValueError: for other levels.

    Example:
        >>> x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> pcdm.Identity().analyse_integers(x)
        Scales(base: (2, 3, 8, 8) torch.int32)
    """

    name = "vdm"
    volume_preserving = True

    def __init__(self, levels: int = 0):
        if levels != 0:
            raise ValueError(f"Identity has one scale, so levels=0; got {levels!r}")
        super().__init__(0)


MAPS: dict[str, type[HierarchicalMap]] = {
    m.name: m for m in (HaarWavelet, LaplacianPyramid, Subsampling, Identity)
}


def make_map(name: str, levels: int) -> HierarchicalMap:
    """The map of that name.

    Args:
        name: one of `MAPS`: wavelet, laplacian, standard or vdm.
        levels: how many times the side is halved.

    Returns:
        The map.

    Raises:
        ValueError: for another name, or levels that the map does not take.

    Example:
        >>> from pcdm_lib.maps import make_map
        >>> make_map("wavelet", 2)
        HaarWavelet(levels=2)
    """
    if name not in MAPS:
        raise ValueError(f"unknown map {name!r}: one of {', '.join(MAPS)}")
    return MAPS[name](levels)
