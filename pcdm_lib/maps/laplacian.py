"""The Laplacian pyramid with norm-preserving resampling (Sect. 4.2, Eqs. 11-13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdm_lib.maps.haar import Bands, haar_step, haar_step_inverse, interleave, upsample
from pcdm_lib.maps.scales import Scales, ScaleSpec
from pcdm_lib.maps.wavelet import HaarWavelet


class LaplacianPyramid(HaarWavelet):
    """Laplacian pyramid with the norm-preserving 2x2 resampling of the paper: d = the Haar
    approximation, u = its transpose.

    The residual y - u(d(y)) is the orthogonal projection of y on the span of the details, so the
    map is a tight frame: all singular values are 1, and its latent has more entries than
    dimensions. Its orthonormal coordinates (and its integers) are those of the wavelet; what a
    network sees and predicts is the residual, C channels at the finer resolution.
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

    def lattice_phase(
        self, spec: ScaleSpec, centre: Tensor, coarse: Tensor | None
    ) -> tuple[Tensor, float]:
        if spec.kind != "details":
            return centre, 1.0
        assert coarse is not None, "details stand beside the coarser scale"
        return interleave(*self._finer(centre, coarse)), math.sqrt(3) / 4

    def phase_channels(self, spec: ScaleSpec) -> int:
        return spec.view_shape[0]
