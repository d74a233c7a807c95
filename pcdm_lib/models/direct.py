"""The direct cascade: conditionals without latents, so that the likelihood is exact.

    -log P(x) = -log P(z_1) - sum_s log P(z_s | z_<s)                                       (Eq. 15)

The Haar map goes down to a single block, and every level has the same network. The details of a
level are coded in four phases: the blocks at even rows and columns first, then those at odd rows
and columns, then the other two kinds. So a block knows the coarse image everywhere and the details
of the phases before its own. In a block, the integers of the bands p, q, r and of their colours
come one after the other. Each has a mixture of logistic distributions over the integers that are
allowed (maps/lattice.py), so the probabilities of all images have the sum 1.

All numbers between pixels and the parameters of the mixtures are whole (integers.py), so any
machine computes the same distributions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdm_lib.maps.haar import Bands, haar_step_integers, haar_step_integers_inverse
from pcdm_lib.maps.lattice import Progression, allowed
from pcdm_lib.maps.scales import ScaleSpec
from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.models.integers import LARGEST, UNIT, WholeConv2d, active, clamped, rounded
from pcdm_lib.models.mixture import (
    LOGIT_STEP,
    PLACE_STEP,
    WIDTH_STEP,
    WIDTHS,
    Mixture,
    mixture_nats,
)

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # rows and columns of the blocks, in coding order
COMPONENTS = 5
HIDDEN = 32  # of the head, an integer of a block
DEEPEST = 6  # levels from here on share what the network learns of a level
STREAM = 1023  # the range of what goes around the residual blocks
_FROM_COLOURS = 64  # steps of the linear terms
_SPREAD = (12.0, 12.0, 8.0)  # units of p, q, r: about their spread in photographs
WIDE = 10  # levels from here on take 64-bit integers


class Level(NamedTuple):
    """One level of an image's pyramid.

    Attributes:
        number: 1 for the finest.
        coarse: sums of the blocks, (N, C, h, w) integers.
        details: p, q, r of the blocks, (N, 3C, h, w).
        coded: (3C, h, w) bool: False where a detail is 0 for every image, beside a repeated row or
            column; None where all are coded.
    """

    number: int
    coarse: Tensor
    details: Tensor
    coded: Tensor | None


class Deal(NamedTuple):
    """Which part of every image a training step looks at, drawn at random.

    Attributes:
        phases: (N,) whole numbers: an image's phase of a level is this modulo their number.
        level: a whole number: of the levels from 3 on, this one modulo their number.
    """

    phases: Tensor
    level: int


def depth(height: int, width: int) -> int:
    """How often an image is halved until one block is left.

    Args:
        height: of the image.
        width: of the image.

    Returns:
        Levels, 0 for a single pixel.

    Example:
        >>> from pcdm_lib.models.direct import depth
        >>> depth(32, 32), depth(1, 1), depth(512, 768)
        (5, 0, 10)
    """
    return (max(height, width) - 1).bit_length()


def sides_of(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the image and of every coarser one.

    Args:
        height: of the image.
        width: of the image.

    Returns:
        A pair a level, from the image itself on.

    Example:
        >>> from pcdm_lib.models.direct import sides_of
        >>> sides_of(5, 2)
        [(5, 2), (3, 1), (2, 1), (1, 1)]
    """
    sides = [(height, width)]
    for _ in range(depth(height, width)):
        height, width = (height + 1) // 2, (width + 1) // 2
        sides.append((height, width))
    return sides


def _even(x: Tensor) -> Tensor:
    """The last row and column repeated where their number is odd."""
    if x.shape[-2] % 2:
        x = torch.cat([x, x[..., -1:, :]], dim=-2)
    if x.shape[-1] % 2:
        x = torch.cat([x, x[..., -1:]], dim=-1)
    return x


def coded_details(channels: int, height: int, width: int) -> Tensor | None:
    """Which details of a level are coded whose finer image has these sides.

    Args:
        channels: of the image.
        height: of the finer image.
        width: of the finer image.

    Returns:
        (3C, h, w) bool, or None where all are.
    """
    if height % 2 == 0 and width % 2 == 0:
        return None
    coded = torch.ones(3, channels, (height + 1) // 2, (width + 1) // 2, dtype=torch.bool)
    if height % 2:
        coded[0, :, -1] = coded[2, :, -1] = False
    if width % 2:
        coded[1, :, :, -1] = coded[2, :, :, -1] = False
    return coded.flatten(0, 1)


def pyramid(x: Tensor) -> tuple[Tensor, list[Level]]:
    """The levels of images of any sides, by Haar steps on integers.

    Args:
        x: integers (N, C, H, W).

    Returns:
        The sum of the last block, (N, C, 1, 1), and the levels, coarsest first.

    Example:
        >>> from pcdm_lib.models.direct import pyramid
        >>> base, levels = pyramid(torch.full((1, 1, 4, 4), 3))
        >>> base.item(), [level.number for level in levels]
        (48, [2, 1])
    """
    levels = []
    for number in range(1, depth(*x.shape[-2:]) + 1):
        coded = coded_details(x.shape[1], *x.shape[-2:])
        x = x.to(torch.int64) if number >= WIDE else x
        x, *details = haar_step_integers(_even(x))
        levels.append(Level(number, x, torch.cat(details, dim=1), coded))
    return x, levels[::-1]


def finer(level: Level, height: int, width: int) -> Tensor:
    """The image below a level: Haar's inverse, without what was repeated.

    Args:
        level: whole.
        height: of the finer image.
        width: of the finer image.

    Returns:
        Integers (N, C, height, width).
    """
    bands = Bands(level.coarse, *level.details.chunk(3, dim=1))
    return haar_step_integers_inverse(bands)[..., :height, :width]


@functools.cache
def _spec(number: int, channels: int, max_value: int) -> ScaleSpec:
    # of one block; a map itself stops at the level whose sums 32 bits hold, images do not
    details = HaarWavelet(1).specs((channels, 2, 2), max_value)[1]
    return dataclasses.replace(details, level=number)


def ranges(number: int, coarse: Tensor, known: Sequence[Tensor], max_value: int) -> Progression:
    """The integers that the next band of a level can hold.

    Args:
        number: of the level, 1 for the finest.
        coarse: integers (N, C, ...).
        known: the bands before it: nothing for p, p for q, p and q for r.
        max_value: of a pixel.

    Returns:
        Progressions of the shape of `coarse`.
    """
    spec = _spec(number, coarse.shape[1], max_value)
    names = ("p", "q", "r")
    return allowed(spec, names[len(known)], coarse, dict(zip(names, known)), coarse)


# ---------------------------------------------------------------- what the network sees


@functools.cache
def _logarithms() -> Tensor:
    """floor(10 log2(1 + v)) for v below 2^13: by whole numbers, so that no library decides."""
    table, k = [], 0
    for v in range(1 << 13):
        while (1 + v) ** 10 >= 1 << (k + 1):
            k += 1
        table.append(k)
    return torch.tensor(table, dtype=torch.float32)


def _logarithm(value: Tensor, shift: int) -> Tensor:
    """Ten times the binary logarithm of the size of a difference in eighths of a unit, and one."""
    eighths = _shifted(value.abs() * 8, shift).clamp(max=(1 << 13) - 1)
    return _logarithms().to(value.device)[eighths]


def _shifted(value: Tensor, shift: int) -> Tensor:
    """Divided by 2^shift, to the nearest."""
    return value if shift == 0 else (value + (1 << shift - 1)) >> shift


def _around(s: Tensor) -> Tensor:
    """With one more row and column on each side, repeated."""
    s = torch.cat([s[..., :1, :], s, s[..., -1:, :]], dim=-2)
    return torch.cat([s[..., :1], s, s[..., -1:]], dim=-1)


class Features(NamedTuple):
    """What the network sees of a level: whole numbers in float32.

    Attributes:
        coarse: of the coarse image, (N, 7C, h, w).
        parity: of its last two bits, (N, 2C, h, w).
    """

    coarse: Tensor
    parity: Tensor


def coarse_features(number: int, coarse: Tensor) -> Features:
    """Differences to the neighbours, their logarithms, values and parities of a coarse image.

    A network learns how wide a distribution is from logarithms; from the values themselves it
    learns it slowly.

    Args:
        number: of the level.
        coarse: integers (N, C, h, w).

    Returns:
        Whole numbers from -255 to 255.
    """
    shift = 2 * (number - 1)
    wide = _around(coarse)
    right, below = wide[..., 1:-1, 2:] - coarse, wide[..., 2:, 1:-1] - coarse
    across = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
    down = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    steps = torch.cat([right, below], dim=1)
    parts = [
        _shifted(steps, shift).clamp(-LARGEST, LARGEST).float(),
        _logarithm(steps, shift),
        _logarithm(torch.cat([across, down], dim=1), shift),
        (_shifted(coarse, shift + 2) - 128).float(),
    ]
    parity = torch.cat([(coarse & 1) * 64, (coarse & 2) * 32], dim=1).float()
    return Features(torch.cat(parts, dim=1), parity)


def detail_features(number: int, details: Tensor) -> Tensor:
    """Details and the logarithms of their sizes.

    Args:
        number: of the level.
        details: (N, 3C, h, w) integers.

    Returns:
        Whole numbers from -255 to 255, (N, 6C, h, w).
    """
    shift = 2 * (number - 1)
    value = _shifted(details, shift).clamp(-LARGEST, LARGEST).float()
    return torch.cat([value, _logarithm(details, shift)], dim=1)


def of_phase(x: Tensor, phase: int) -> Tensor:
    """The blocks of a phase, (..., h, w) -> (..., h', w').

    Args:
        x: (..., h, w).
        phase: 0 to 3.

    Returns:
        A view; empty where there are none.
    """
    row, column = PHASES[phase]
    return x[..., row::2, column::2]


def phases_of(height: int, width: int) -> list[int]:
    """The phases that have blocks in a grid.

    Args:
        height: of the grid.
        width: of the grid.

    Returns:
        Their numbers, in coding order.
    """
    return [k for k, (row, column) in enumerate(PHASES) if row < height and column < width]


def _cells(x: Tensor, row: int, column: int, high: int, wide: int) -> Tensor:
    """Every second block from a place on, zeros beyond the edge."""
    part = x[..., row::2, column::2][..., :high, :wide]
    return F.pad(part, (0, wide - part.shape[-1], 0, high - part.shape[-2]))


def phase_input(features: Features, details: Tensor, phase: int) -> Tensor:
    """What the trunk sees at the blocks of a phase: the four blocks of a 2x2 cell whose first is
    the one to be coded, as channels; of the details, those of earlier phases.

    Args:
        features: of the level.
        details: `detail_features` of the level, (N, 6C, h, w); those of this phase and of later
            ones are not looked at.
        phase: 0 to 3.

    Returns:
        (N, 48C, h', w').
    """
    row, column = PHASES[phase]
    own = of_phase(features.coarse, phase)
    high, wide = own.shape[-2:]
    earlier = PHASES[:phase]
    parts = [own, of_phase(features.parity, phase)]
    for down, right in PHASES[1:]:
        place = row + down, column + right
        parts.append(_cells(features.coarse, *place, high, wide))
        if (place[0] % 2, place[1] % 2) in earlier:
            parts.append(_cells(details, *place, high, wide))
        else:
            parts.append(details.new_zeros(len(own), details.shape[1], high, wide))
    return torch.cat(parts, dim=1)


# ---------------------------------------------------------------- the network


class WholeBlock(nn.Module):
    """activation, conv, activation, conv, + shortcut: a residual block of whole numbers, without
    norms, so that no block depends on pixels far away.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in, self.conv_out = (
            WholeConv2d(channels, channels, 3),
            WholeConv2d(channels, channels, 3),
        )
        nn.init.kaiming_normal_(self.conv_in.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> the same shape, whole numbers.

        Args:
            x: whole numbers.

        Returns:
            Whole numbers.
        """
        h = self.conv_in(active(x))
        return clamped(x + self.conv_out(active(h)), -STREAM, STREAM)


class Trunk(nn.Module):
    """From what is known around the blocks of a phase to features of each.

    Args:
        c_in: channels of `phase_input`.
        channels: width.
        blocks: residual blocks.
    """

    def __init__(self, c_in: int, channels: int, blocks: int):
        super().__init__()
        self.stem = WholeConv2d(c_in, channels, 3)
        self.phase = nn.Parameter(torch.zeros(len(PHASES), channels))
        self.level = nn.Parameter(torch.zeros(DEEPEST, channels))
        self.blocks = nn.Sequential(*(WholeBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor, phase: Tensor, number: int) -> Tensor:
        """Features, whole numbers from -255 to 255.

        Args:
            x: (N, c_in, h, w).
            phase: (N,).
            number: of the level.

        Returns:
            (N, channels, h, w).
        """
        where = self.phase[phase] + self.level[min(number, DEEPEST) - 1]
        h = self.stem(x) + rounded(where * UNIT)[:, :, None, None]
        return active(self.blocks(clamped(h, -STREAM, STREAM)))


class Head(nn.Module):
    """From features of a block and its earlier integers to the mixture of each integer: 1x1
    convolutions, in one pass in training and integer after integer in decoding.

    Args:
        channels: of the features.
        colours: of the image, 1 or 3.
    """

    grid: Tensor  # what one output of the network is on its grid

    def __init__(self, channels: int, colours: int):
        super().__init__()
        self.colours, self.count = colours, 3 * colours
        self.given = WholeConv2d(channels, self.count * HIDDEN, 1)
        self.earlier = WholeConv2d(3 * self.count, self.count * HIDDEN, 1, bias=False)
        earlier = torch.ones(self.count, self.count).tril(-1)
        mask = earlier.repeat_interleave(HIDDEN, 0).repeat_interleave(3, 1)
        self.earlier.mask = mask[:, :, None, None]
        m = COMPONENTS
        self.outputs = 3 * m + 2
        self.exit = WholeConv2d(
            self.count * HIDDEN, self.count * self.outputs, 1, groups=self.count, bias=False
        )
        nn.init.zeros_(self.exit.weight)
        grid = torch.ones(self.count, self.outputs)
        grid[:, :m] = LOGIT_STEP
        grid[:, m : 2 * m] = PLACE_STEP * torch.tensor(_SPREAD).repeat_interleave(colours)[:, None]
        grid[:, 2 * m : 3 * m] = WIDTH_STEP
        grid[:, 3 * m :] = _FROM_COLOURS
        self.register_buffer("grid", grid.view(-1, 1, 1), persistent=False)
        start = 0.1 * torch.randn(self.count, self.outputs)
        start[:, m : 2 * m] += torch.linspace(-0.5, 0.5, m)
        start[:, 2 * m : 3 * m] += 4.0
        self.start = nn.Parameter(start.flatten())

    def forward(self, features: Tensor, number: int, details: Tensor) -> Tensor:
        """Outputs on their grids of all integers of the blocks.

        Args:
            features: (N, channels, h, w).
            number: of the level.
            details: (N, 3C, h, w) integers; each is seen by those after it.

        Returns:
            (N, 3C, 3M + 2, h, w) whole numbers.
        """
        known = self.given(features) + self.earlier(known_features(number, details))
        h = active(known)
        found = rounded(self.exit.sums(h) * (self.grid / UNIT))
        found = found + rounded(self.start.view(-1, 1, 1) * self.grid)
        return found.view(len(h), self.count, self.outputs, *h.shape[2:])


def known_features(number: int, details: Tensor) -> Tensor:
    """Value, logarithm of the size, and that with the sign, of each detail.

    Args:
        number: of the level.
        details: (N, 3C, h, w) integers.

    Returns:
        Whole numbers, (N, 9C, h, w).
    """
    shift = 2 * (number - 1)
    size = _logarithm(details, shift)
    value = _shifted(details, shift).clamp(-LARGEST, LARGEST).float()
    return torch.stack([value, size, size * details.sign()], dim=2).flatten(1, 2)


def mixture_of(
    outputs: Tensor, number: int, details: Tensor, colours: int, first: int = 0
) -> Mixture:
    """The mixtures that outputs of the head stand for: cut off to their ranges, the locations
    moved in proportion to the earlier colours of the same band.

    Args:
        outputs: (N, J, 3M + 2, h, w) of J integers of a block.
        number: of the level.
        details: (N, first + J - 1 or more, h, w) integers of the block; each is seen by later
            colours of its band.
        colours: of the image.
        first: which integer of the block the first of the outputs is for.

    Returns:
        Whole numbers on their grids.
    """
    m = COMPONENTS
    logits = clamped(outputs[:, :, :m], -32 * LOGIT_STEP, 32 * LOGIT_STEP)
    places = clamped(outputs[:, :, m : 2 * m], -(1 << 14), 1 << 14)
    widths = clamped(outputs[:, :, 2 * m : 3 * m], 0, WIDTHS - 1)
    if colours == 3:
        slopes = clamped(outputs[:, :, 3 * m :], -2 * _FROM_COLOURS, 2 * _FROM_COLOURS)
        places = places + _moved(slopes, number, details, first)
    return Mixture(logits, places, widths)


def _moved(slopes: Tensor, number: int, details: Tensor, first: int) -> Tensor:
    """What the earlier colours move the locations by, in sixteenths of a unit: (N, J, 1, h, w)."""
    shift = 2 * number  # 16 / 64 of a unit of 4^(number - 1)
    zero = torch.zeros_like(slopes[:, 0, 0])
    columns = []
    for j in range(slopes.shape[1]):
        place = first + j
        earlier = [details[:, place - i] for i in range(place % 3, 0, -1)]
        columns.append(
            sum((_product(a, v, shift) for a, v in zip(slopes[:, j].unbind(1), earlier)), zero)
        )
    return torch.stack(columns, dim=1).unsqueeze(2)


def _product(slope: Tensor, value: Tensor, shift: int) -> Tensor:
    """slope * value / 2^shift to the nearest, exact on every level. The gradient is that without
    rounding."""
    with torch.no_grad():
        exact = _shifted(slope.long() * value.long(), shift).to(slope.dtype)
        gradient = value.to(slope.dtype) / 2**shift
    return exact + (slope - slope.detach()) * gradient


class DirectNetwork(nn.Module):
    """-log P of images of any sides, level by level.

    Args:
        colours: 1 or 3.
        channels: width of the trunk.
        blocks: its residual blocks.
        max_value: of a pixel.

    Example:
        >>> from pcdm_lib.models.direct import DirectNetwork
        >>> network = DirectNetwork(1, 8, 1, max_value=1).eval()
        >>> x = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)]).view(16, 1, 2, 2)
        >>> with torch.no_grad(): nats = network(x.int(), dtype=torch.float64).sum(dim=1)
        >>> round(float((-nats).exp().sum()), 9)  # Kraft's sum over all images of 2x2 bits
        1.0
    """

    def __init__(self, colours: int, channels: int, blocks: int, max_value: int = 255):
        super().__init__()
        self.colours, self.max_value = colours, max_value
        self.trunk = Trunk(48 * colours, channels, blocks)
        self.head = Head(channels, colours)

    def forward(
        self,
        x: Tensor,
        deal: Deal | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Nats of every part of every image, (N, levels + 1): the base, then the levels, coarsest
        first.

        Args:
            x: integers (N, C, H, W).
            deal: where it is given, an image has one phase a level, which stands for all of them,
                and one of the levels from 3 on stands for these: an unbiased draw at a quarter of
                the cost.
            dtype: of the distributions; what they are made from is whole.

        Returns:
            Nats.
        """
        _, levels = pyramid(x)
        most = float(self.max_value) * 4.0 ** len(levels) + 1
        rows = [torch.full((len(x),), self.colours * math.log(most), dtype=dtype, device=x.device)]
        deep = [level.number for level in levels if level.number > 2]
        phases = None if deal is None else deal.phases
        chosen = deep[deal.level % len(deep)] if deep and deal is not None else 0
        for level in levels:
            if deal is None or level.number <= 2:
                rows.append(self._level(level, phases, dtype))
            elif level.number == chosen:
                rows.append(len(deep) * self._level(level, phases, dtype))
            else:
                rows.append(torch.zeros_like(rows[0]))
        return torch.stack(rows, dim=1)

    def _level(self, level: Level, deal: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Nats of a level, (N,); of one phase an image, times their number, where they are
        dealt."""
        features = coarse_features(level.number, level.coarse)
        known = detail_features(level.number, level.details)
        n, phases = len(level.coarse), phases_of(*level.coarse.shape[2:])
        everything = torch.arange(n, device=known.device)
        jobs = [
            (k, everything if deal is None else everything[deal % len(phases) == i])
            for i, k in enumerate(phases)
        ]
        weight = 1 if deal is None else len(phases)
        total = torch.zeros(n, dtype=dtype, device=known.device)
        for group in _alike(jobs, level.coarse.shape[2:]):
            rows = torch.cat([rows for _, rows in group])
            if not len(rows):
                continue
            seen = torch.cat(
                [
                    phase_input(Features(*(f[rows] for f in features)), known[rows], k)
                    for k, rows in group
                ]
            )
            phase = torch.cat([torch.full_like(rows, k) for k, rows in group])
            coarse, details = (
                torch.cat([of_phase(t[rows], k) for k, rows in group])
                for t in (level.coarse, level.details)
            )
            f = self.trunk(seen, phase, level.number)
            nats = self.block_nats(f, level.number, coarse, details, dtype)
            if level.coded is not None:
                coded = [of_phase(level.coded, k).expand(len(r), -1, -1, -1) for k, r in group]
                nats = nats * torch.cat(coded)
            total = total.index_add(0, rows, weight * nats.sum(dim=(1, 2, 3)))
        return total

    @torch.no_grad()
    def level_nats(self, level: Level) -> Tensor:
        """-log P of every integer of a level.

        Args:
            level: of images.

        Returns:
            Nats, (N, 3C, h, w) float64; 0 where an integer is not coded.
        """
        features = coarse_features(level.number, level.coarse)
        known = detail_features(level.number, level.details)
        total = torch.zeros(level.details.shape, dtype=torch.float64, device=known.device)
        for phase in phases_of(*level.coarse.shape[2:]):
            which = torch.full((len(total),), phase, device=known.device)
            f = self.trunk(phase_input(features, known, phase), which, level.number)
            coarse, details = of_phase(level.coarse, phase), of_phase(level.details, phase)
            nats = self.block_nats(f, level.number, coarse, details, torch.float64)
            of_phase(total, phase).copy_(nats)
        return total if level.coded is None else total * level.coded.to(total.device)

    def block_nats(
        self, f: Tensor, number: int, coarse: Tensor, details: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """-log P of the details of blocks, given the trunk's features of each.

        Args:
            f: (N, channels, h, w).
            number: of the level.
            coarse: (N, C, h, w) integers.
            details: (N, 3C, h, w) integers.
            dtype: of the distributions.

        Returns:
            (N, 3C, h, w) nats.
        """
        outputs = self.head(f, number, details)
        mixture = mixture_of(outputs, number, details, self.colours)
        bands = details.chunk(3, dim=1)
        found = [ranges(number, coarse, bands[:i], self.max_value) for i in range(3)]
        unit = 4.0 ** (number - 1)
        step = torch.tensor([p.step for p in found], dtype=dtype, device=f.device) / unit
        return mixture_nats(
            Mixture(*(part.to(dtype) for part in mixture)),
            details.to(dtype) / unit,
            torch.cat([p.low for p in found], dim=1).to(dtype) / unit,
            torch.cat([p.high for p in found], dim=1).to(dtype) / unit,
            step.repeat_interleave(self.colours).view(1, -1, 1, 1),
        )


def _alike(
    jobs: list[tuple[int, Tensor]], sides: Sequence[int]
) -> Iterator[list[tuple[int, Tensor]]]:
    """Phases whose grids have the same sides, together."""
    height, width = sides
    groups: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    for phase, rows in jobs:
        row, column = PHASES[phase]
        groups.setdefault(((height - row + 1) // 2, (width - column + 1) // 2), []).append(
            (phase, rows)
        )
    yield from groups.values()
