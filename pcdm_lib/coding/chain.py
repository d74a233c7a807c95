"""Bits back along the chain of a diffusion model: its time grid, the network's rounded prediction,
one scale, one tile.

The stack and the distributions on it stand in bits_back.py.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcdm_lib.coding.bits_back import (
    _DRAW_REACH,
    FINENESS,
    FRACTION,
    LARGEST_PREDICTION,
    PREDICTION,
    BitsBack,
    Counted,
    Gaussian,
    Ints,
    Message,
    Noise,
    Progressions,
    Pushed,
)
from pcdm_lib.coding.tiles import TileScales
from pcdm_lib.diffusion.schedule import Schedule
from pcdm_lib.diffusion.terms import Denoiser
from pcdm_lib.maps.lattice import allowed
from pcdm_lib.maps.scales import ScaleSpec


# ---------------------------------------------------------------- the chain of a diffusion
def _fixed(value: float) -> int:
    return round(value * 2**FRACTION)


@dataclass(frozen=True)
class TimeGrid:
    """The numbers of a T-step chain: spacings of the latents' grids, and means and deviations in
    units of them.

    Index k of the lists goes from 0 (or 1, where the first is unused) to T. Spacings are exact
    floats; factors are in fixed point.
    """

    steps: int
    gamma: tuple[float, ...]
    spacing: tuple[float, ...]
    forward: tuple[int, ...]  # n_k ~ N(forward * n_{k-1}, forward_std^2)
    forward_std: tuple[float, ...]
    # n_{k-1} ~ N(keep * n_k - pull * e, reverse_std^2), with e the rounded prediction
    keep: tuple[int, ...]
    pull: tuple[int, ...]
    reverse_std: tuple[float, ...]
    alpha: float  # at t = 0
    sigma: float

    @classmethod
    def of(cls, schedule: Schedule, steps: int, fineness: float = FINENESS) -> TimeGrid:
        """The grid of a schedule's T-step model (VDM, appendix A: the same densities as
        diffusion.reverse_step)."""
        if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 65535:
            raise ValueError(f"the codec takes 2 to 65535 steps, got {steps!r}")
        if not 0.01 <= fineness <= 1:
            raise ValueError(
                f"the fineness of the latents' grid must lie in 0.01..1, got {fineness}"
            )
        with torch.no_grad():
            times = torch.arange(steps + 1, dtype=torch.float64) / steps
            device = schedule.start.device
            values = copy.deepcopy(schedule).double()(times.to(device)).cpu().tolist()
        # a last bit that differs elsewhere does not matter
        gamma = [round(g * 2**FRACTION) / 2**FRACTION for g in values]
        if any(b <= a for a, b in zip(gamma, gamma[1:])):
            raise ValueError(
                f"the schedule does not rise from each of {steps} steps to the next: use fewer "
                f"steps"
            )
        alpha = [round(math.sqrt(1 / (1 + math.exp(g))) * 2**40) / 2**40 for g in gamma]
        sigma = [round(math.sqrt(1 / (1 + math.exp(-g))) * 2**40) / 2**40 for g in gamma]
        # 1 - SNR(t) / SNR(s)
        shrink = [0.0] + [-math.expm1(a - b) for a, b in zip(gamma, gamma[1:])]
        # of q(z_k | z_{k-1})
        drawn = [sigma[0]] + [sigma[k] * math.sqrt(shrink[k]) for k in range(1, steps + 1)]
        # of p(z_k | z_{k+1}), and of the prior
        coded = [sigma[k] * math.sqrt(shrink[k + 1]) for k in range(steps)] + [1.0]
        spacing = [
            2.0 ** (math.floor(math.log2(fineness * min(a, b)) * 8) / 8)
            for a, b in zip(drawn, coded)
        ]
        spacing = [round(d * 2.0**40) * 2.0**-40 for d in spacing]
        ratio = [0.0] + [alpha[k - 1] / alpha[k] for k in range(1, steps + 1)]

        def deviations(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(round(v / d * 2**16) / 2**16 for v, d in zip(values, spacing))

        def factors(of: Callable[[int], float]) -> tuple[int, ...]:
            return (0, *(_fixed(of(k)) for k in range(1, steps + 1)))

        return cls(
            steps,
            tuple(gamma),
            tuple(spacing),
            factors(lambda k: spacing[k - 1] / spacing[k] / ratio[k]),
            deviations(drawn),
            factors(lambda k: ratio[k] * spacing[k] / spacing[k - 1]),
            factors(lambda k: ratio[k] * shrink[k] * sigma[k] * PREDICTION / spacing[k - 1]),
            deviations(coded),
            alpha[0],
            sigma[0],
        )

    @property
    def start_bits(self) -> float:
        """Bits a coordinate that have to lie on the stack before the first push: those of z_0 and
        z_1."""
        return sum(math.log2(self.forward_std[k] * math.sqrt(2 * math.pi * math.e)) for k in (0, 1))


class Predictor:
    """eps_hat of a denoiser as whole multiples of PREDICTION, the same on every machine as far as
    `dtype` allows.

    Args:
        denoiser: of `dtype`, on `device`.
        multiple: sides are padded to multiples of it before the denoiser sees them, by repeating
            the border.
        batch: images that the denoiser sees at once; does not matter for the result in float64.
        on_evaluation: called with the number of images after each evaluation, for progress.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        multiple: int = 1,
        batch: int = 16,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        on_evaluation: Callable[[int], None] | None = None,
    ):
        self.denoiser, self.multiple, self.batch, self.dtype, self.device = (
            denoiser,
            multiple,
            batch,
            dtype,
            device,
        )
        self.on_evaluation, self.seconds = on_evaluation, 0.0

    @torch.no_grad()
    def __call__(self, n: Ints, spacing: float, gamma: float, coarse: Tensor | None) -> Ints:
        """(N, bands*C, h, w) latents on their grid -> predictions of the same shape."""
        start = time.perf_counter()
        found = [
            self._some(
                n[i : i + self.batch],
                spacing,
                gamma,
                None if coarse is None else coarse[i : i + self.batch],
            )
            for i in range(0, len(n), self.batch)
        ]
        self.seconds += time.perf_counter() - start
        if self.on_evaluation is not None:
            self.on_evaluation(len(n))
        return np.concatenate(found)

    def _some(self, n: Ints, spacing: float, gamma: float, coarse: Tensor | None) -> Ints:
        height, width = n.shape[2:]
        z = torch.from_numpy(n).double() * spacing
        z = self._padded(z, height, width).to(self.device, self.dtype)
        if coarse is not None:
            coarse = self._padded(coarse.double(), height, width).to(torch.int32).to(self.device)
        eps = self.denoiser(
            z, torch.full((len(n),), gamma, dtype=self.dtype, device=self.device), coarse
        )[..., :height, :width]
        if not bool(torch.isfinite(eps).all()):
            raise FloatingPointError(
                "the network predicts values that are not finite: its weights are broken"
            )
        limit = LARGEST_PREDICTION / PREDICTION
        return (
            (eps.double() / PREDICTION).round().clamp(-limit, limit).to(torch.int64).cpu().numpy()
        )

    def _padded(self, x: Tensor, height: int, width: int) -> Tensor:
        down, right = -height % self.multiple, -width % self.multiple
        return (
            torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate")
            if down or right
            else x
        )


class Spent(NamedTuple):
    """Bits that N tiles of one scale took, (T + 2, N).

    Row 0 is the push of the integers. Row k is the push of z_{k-1} less its own draw, so single
    entries may be negative. Row T + 1 is the same of z_T.

    Attributes:
        bits: those of the entropy coder.
        ideal: those of the densities themselves: a draw of the T-step bound, on the very latents of
            the file.
    """

    bits: NDArray[np.float64]
    ideal: NDArray[np.float64]

    @classmethod
    def none(cls, steps: int, count: int) -> Spent:
        return cls(np.zeros((steps + 2, count)), np.zeros((steps + 2, count)))


class ScaleCodec:
    """The integers of one scale, for a batch of tiles of one shape, given the coarser ones.

    Args:
        spec: the scale, with the shape of the tiles.
        predict: its network.
        grid: its times.
        coarse: integers rebuilt from the coarser scales, (N, C, h, w), or None.
        count: N.
        coded: (bands*C, h, w), which coordinates are coded; the others are known to be 0
            (tiles.py). All of them where it is None.
        number: of the batch on its stack, which keeps the pseudo-random streams apart.
    """

    def __init__(
        self,
        spec: ScaleSpec,
        predict: Predictor,
        grid: TimeGrid,
        coarse: Tensor | None,
        count: int,
        coded: NDArray[np.bool_] | None = None,
        number: int = 0,
    ):
        self.number = number
        self.spec, self.predict, self.grid, self.coarse, self.count = (
            spec,
            predict,
            grid,
            coarse,
            count,
        )
        self.coded = np.ones(spec.shape, bool) if coded is None else coded
        self._bands = [np.flatnonzero(part) for part in self.coded.reshape(len(spec.bands), -1)]
        entries = int(self.coded.sum())
        if spec.max_value * 4**spec.level * grid.alpha * spec.gain / grid.spacing[0] >= 1 << (
            54 - FRACTION
        ):
            raise ValueError(
                f"the codec has too few bits for {spec.name} after {spec.level} halvings: use "
                f"fewer levels or fewer steps"
            )
        prior = Gaussian(np.zeros((count, entries), np.int64), grid.reverse_std[grid.steps])
        self._chain = BitsBack(
            grid.steps, self._first, self._data, self._forward, self._reverse, prior
        )

    def push(self, message: Message, z: Ints) -> Spent:
        """Push z (N, bands*C, h, w); what it took."""
        spent = Spent.none(self.grid.steps, self.count)
        for pushed in self.pushes(message, z):
            spent.bits[pushed.step] = pushed.bits.sum(axis=1)
            spent.ideal[pushed.step] = pushed.ideal.sum(axis=1)
        return spent

    def pushes(self, message: Message, z: Ints) -> Iterator[Pushed]:
        """Push z (N, bands*C, h, w); every single push of its chain."""
        if self.coded.any():  # the details of a single pixel are all known
            yield from self._chain.pushes(message, z[:, self.coded])

    def pop(self, message: Message) -> Ints:
        """(N, bands*C, h, w)."""
        return self._spread(
            self._chain.pop(message) if self.coded.any() else np.zeros((self.count, 0), np.int64)
        )

    def _spread(self, values: Ints) -> Ints:
        full = np.zeros((self.count, *self.spec.shape), np.int64)
        full[:, self.coded] = values
        return full

    def _key(self, k: int) -> int:
        return (self.number << 32) + (self.spec.index << 24) + k

    def _first(self, z: Ints) -> Gaussian:
        spec, spacing = self.spec, self.grid.spacing[0]
        scale, shift = (
            _fixed(self.grid.alpha * spec.gain / spacing),
            _fixed(self.grid.alpha * spec.shift / spacing),
        )
        return Noise(z * scale + shift, self.grid.forward_std[0], self._key(0))

    def _data(self, n_0: Ints) -> Counted:
        return _Bands(self, n_0)

    def _forward(self, k: int, n: Ints) -> Gaussian:
        return Noise(n * self.grid.forward[k], self.grid.forward_std[k], self._key(k))

    def _reverse(self, k: int, n: Ints) -> Gaussian:
        grid = self.grid
        e = self.predict(self._spread(n), grid.spacing[k], grid.gamma[k], self.coarse)[
            :, self.coded
        ]
        return Gaussian(n * grid.keep[k] - e * grid.pull[k], grid.reverse_std[k - 1])


class _Bands:
    """The integers of a scale given z_0, band after band as a decoder meets them: (N, coded
    entries)."""

    def __init__(self, scale: ScaleCodec, n_0: Ints):
        spec, grid = scale.spec, scale.grid
        self._scale = scale
        unit, shift = grid.spacing[0] / (grid.alpha * spec.gain), _fixed(spec.shift / spec.gain)
        self._centres = self._split(n_0 * _fixed(unit) - shift)
        self._tau = grid.sigma / (grid.alpha * spec.gain)
        std = grid.forward_std[0]
        # of `Noise`, with what rounding adds
        self._reach = (math.ceil(_DRAW_REACH * std) + 2) / std

    def _split(self, values: Ints) -> list[Ints]:
        ends = np.cumsum([len(band) for band in self._scale._bands])
        return np.split(values, ends[:-1], axis=1)

    def _codec(self, index: int, decoded: dict[str, Tensor]) -> Progressions:
        spec, places = self._scale.spec, self._scale._bands[index]
        like = torch.empty((self._scale.count, spec.shape[0] // len(spec.bands), *spec.shape[1:]))
        progression = allowed(spec, spec.bands[index], self._scale.coarse, decoded, like)
        low, last = (
            v.to(torch.int64).flatten(1).numpy()[:, places]
            for v in (progression.low, progression.last)
        )
        return Progressions(
            self._centres[index], self._tau, low, last, progression.step, self._reach
        )

    def _decoded(self, index: int, values: Ints) -> Tensor:
        spec = self._scale.spec
        full = np.zeros((self._scale.count, math.prod(spec.shape) // len(spec.bands)), np.int32)
        full[:, self._scale._bands[index]] = values
        return torch.from_numpy(full).reshape(
            self._scale.count, spec.shape[0] // len(spec.bands), *spec.shape[1:]
        )

    def _codecs(self, x: Ints) -> list[tuple[Progressions, Ints]]:
        decoded: dict[str, Tensor] = {}
        found = []
        for index, (band, values) in enumerate(zip(self._scale.spec.bands, self._split(x))):
            found.append((self._codec(index, decoded), values))
            decoded[band] = self._decoded(index, values)
        return found

    def push(self, message: Message, x: Ints) -> None:
        for codec, values in reversed(self._codecs(x)):
            codec.push(message, values)

    def pop(self, message: Message) -> Ints:
        decoded: dict[str, Tensor] = {}
        found = []
        for index, band in enumerate(self._scale.spec.bands):
            found.append(self._codec(index, decoded).pop(message))
            decoded[band] = self._decoded(index, found[-1])
        return np.concatenate(found, axis=1)

    def bits(self, x: Ints) -> NDArray[np.float64]:
        """What each element costs, (N, coded entries)."""
        return np.concatenate([codec.bits(values) for codec, values in self._codecs(x)], axis=1)

    def ideal(self, x: Ints) -> NDArray[np.float64]:
        """The same."""
        return self.bits(x)


class TileCodec:
    """Tiles (N, C, height, width) of one shape, integers, all scales: pushed finest first, popped
    coarsest first, as a decoder needs them.

    Args:
        scales: their scales.
        predictors, grids: one a scale, coarsest first.
        count: N.
        number: of the batch.
    """

    def __init__(
        self,
        scales: TileScales,
        predictors: Sequence[Predictor],
        grids: Sequence[TimeGrid],
        count: int,
        number: int = 0,
    ):
        self.scales, self.predictors, self.grids = scales, predictors, grids
        self.count, self.number = count, number

    def _scale(self, index: int, coarse: Tensor | None) -> ScaleCodec:
        return ScaleCodec(
            self.scales.specs[index],
            self.predictors[index],
            self.grids[index],
            coarse,
            self.count,
            self.scales.coded[index],
            self.number,
        )

    def push(self, message: Message, x: Tensor) -> dict[str, Spent]:
        """Push tiles; what each scale took, by its name, finest first."""
        return {codec.spec.name: codec.push(message, z) for codec, z in self._scales_to_push(x)}

    def pushes(self, message: Message, x: Tensor) -> Iterator[tuple[str, Pushed]]:
        """Push tiles; every single push with the name of its scale."""
        for codec, z in self._scales_to_push(x):
            for pushed in codec.pushes(message, z):
                yield codec.spec.name, pushed

    def _scales_to_push(self, x: Tensor) -> Iterator[tuple[ScaleCodec, Ints]]:
        pairs = self.scales.decompose(x)
        for index in reversed(range(len(pairs))):
            z, coarse = pairs[index]
            yield self._scale(index, coarse), z.to(torch.int64).numpy()

    def pop(self, message: Message) -> Tensor:
        coarse: Tensor | None = None
        for index in range(len(self.scales.specs)):
            z = self._scale(index, coarse).pop(message)
            coarse = self.scales.refine(index, coarse, torch.from_numpy(z).to(torch.int32))
        assert coarse is not None  # there is always a base
        return coarse


def probe(grids: Sequence[TimeGrid]) -> int:
    """A checksum of all that is computed on the way to a stream but for the networks: the grids'
    numbers, and what the entropy coder makes of some fixed symbols. The same wherever a stream can
    be decoded."""
    message = Message(np.random.Philox(key=7).random_raw(2000).astype(np.uint32))
    mean = (np.arange(-300, 300) * 0x9E3779B97) % (1 << 40) - (1 << 39)
    for std in (2.25, 17.03125, 160.5):
        x = Noise(mean, std, key=11).pop(message)
        Gaussian(mean + (1 << 31), 1.5 * std).push(message, x)
    for step, tau in ((1, 0.15), (2, 0.15), (4, 0.4)):
        centre = np.arange(600) * step * (1 << FRACTION) + mean // (1 << 12)
        codec = Progressions(centre, tau, np.zeros(600, np.int64), np.full(600, 599), step)
        codec.push(message, codec.pop(message))
    return zlib.crc32(message.finished().astype("<u4").tobytes(), zlib.crc32(repr(grids).encode()))
