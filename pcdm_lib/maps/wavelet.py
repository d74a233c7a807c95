"""The Haar wavelet as a hierarchical volume-preserving map (Sect. 4.2, Eq. 14)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdm_lib.maps.haar import (
    Bands,
    haar_step,
    haar_step_integers,
    haar_step_integers_inverse,
    haar_step_inverse,
)
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.scales import Scales, ScaleSpec


class HaarWavelet(HierarchicalMap):
    """Orthonormal 2-D Haar wavelet: the base is the approximation after `levels` steps, each finer
    scale the three detail bands (p, q, r) of one step. At `levels=0` it is the identity up to the
    name.

    Source: Sect. 4.2, Eq. 14.

    Args:
        levels: how many times the side is halved, 0 to 10.

    Example:
        >>> wavelet = pcdm.HaarWavelet(levels=1)
        >>> x = torch.randint(0, 256, (2, 3, 8, 8))
        >>> scales = wavelet.analyse_integers(x)
        >>> scales
        Scales(base: (2, 3, 4, 4) torch.int32, details1: (2, 9, 4, 4) torch.int32)
        >>> bool((wavelet.synthesise_integers(scales) == x).all())
        True
        >>> wavelet.log_volume((3, 8, 8))
        0.0
    """

    name = "wavelet"

    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        channels, height, width = image_shape
        unit, deepest = 2.0 / max_value, 2**self.levels
        base = (channels, height // deepest, width // deepest)
        specs = [
            ScaleSpec(
                "base",
                0,
                "sum",
                self.levels,
                ("s",),
                base,
                base,
                None,
                max_value,
                unit / deepest,
                -float(deepest),
            )
        ]
        for index, level in enumerate(range(self.levels, 0, -1), start=1):
            side = 2**level
            grid = (height // side, width // side)
            shape = (3 * channels, *grid)
            specs.append(
                ScaleSpec(
                    self._detail_name(level),
                    index,
                    "details",
                    level,
                    ("p", "q", "r"),
                    shape,
                    self._detail_view(shape),
                    self._condition_shape(channels, grid),
                    max_value,
                    unit / side,
                    0.0,
                )
            )
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
        if index == 0:
            return z
        assert coarse is not None, "only the base has no coarser scale"
        return haar_step_integers_inverse(Bands(coarse, *z.chunk(3, dim=1)))

    def condition_image(self, spec: ScaleSpec, coarse: Tensor) -> Tensor:
        return coarse.to(torch.get_default_dtype()) * (2.0 / (spec.max_value * 4**spec.level)) - 1.0

    def brightness(self, index: int, coarse: Tensor, max_value: int = 255) -> Tensor:
        return coarse.to(torch.get_default_dtype()) / (max_value * 4 ** (self.levels - index))

    def lattice_phase(
        self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None
    ) -> tuple[Tensor, float]:
        if spec.kind != "details":
            return centre, 1.0
        assert coarse is not None, "details stand beside the coarser scale"
        return torch.cat(self._finer(centre, coarse), dim=1), math.sqrt(3) / 4

    def phase_channels(self, spec: ScaleSpec) -> int:
        return 4 * spec.shape[0] // 3 if spec.kind == "details" else spec.shape[0]

    def _finer(self, centre: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four values (a, b, c, d) of every block that the coarse sums and (noisy) details
        stand for."""
        s, (p, q, r) = coarse.to(centre.dtype), centre.chunk(3, dim=1)
        return (s + p + q + r) / 4, (s + p - q - r) / 4, (s - p + q - r) / 4, (s - p - q + r) / 4
