"""Images of any size for a model of one size: tiles, and the integer scales of a tile whose sides
are odd.

An image is cut into tiles of about the side that the model was trained on, all nearly equal, so
that none is a sliver. Only the last row and column of tiles can have sides that do not halve.
There, each Haar step repeats the last row or column of what it takes, which makes some of its
coefficients zero whatever the image is: p and r below a repeated row, q and r beside a repeated
    column. Both sides know that, so
those coefficients are not coded at all: n pixels take n coordinates. What is left of a waste: a
model that was not trained on borders does not know that the sums there are even, which is about a
bit for each sample of a repeated row or column.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pcdm_lib.maps.haar import haar_step_integers
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.standard import Identity
from pcdm_lib.maps.wavelet import HaarWavelet


class Box(NamedTuple):
    """A tile's place in its image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def plan(height: int, width: int, side: int, multiple: int = 1) -> list[Box]:
    """Tiles of an image, row after row: about `side` a side (two thirds to one and a half of it
    where the image is large enough), all but the last of each row and column whole multiples of
    `multiple`."""
    rows, columns = _cuts(height, side, multiple), _cuts(width, side, multiple)
    return [
        Box(top, left, bottom - top, right - left)
        for top, bottom in zip(rows, rows[1:])
        for left, right in zip(columns, columns[1:])
    ]


def pieces(shape: tuple[int, int, int], side: int, most: int, longest: int) -> list[Box]:
    """Pieces of an image (C, H, W) that is too large for one chunk, row after row; the whole image
    where it is not.

    They are nearly equal, near to squares, and of whole tiles or more where there is room for one.

    Args:
        side: of the tiles.
        most: samples of a piece.
        longest: side of a piece.
    """
    channels, height, width = shape
    if channels * height * width <= most and max(height, width) <= longest:
        return [Box(0, 0, height, width)]
    room = max(1, most // channels)  # pixels
    square = max(1, math.isqrt(room) // side) * side
    high = min(height, square, longest, room)
    wide = min(width, longest, max(1, room // high))
    high = min(height, longest, max(1, room // wide))
    rows, columns = _equal(height, high), _equal(width, wide)
    return [
        Box(top, left, bottom - top, right - left)
        for top, bottom in zip(rows, rows[1:])
        for left, right in zip(columns, columns[1:])
    ]


def _equal(length: int, most: int) -> list[int]:
    """Cuts of a length into the fewest parts of at most so much."""
    count = -(-length // most)
    return [i * length // count for i in range(count + 1)]


def _cuts(length: int, side: int, multiple: int) -> list[int]:
    if length < 1 or side < 1 or multiple < 1:
        raise ValueError(
            f"sides must be at least 1, got a length of {length} in tiles of {side} and steps of "
            f"{multiple}"
        )
    count = max(1, (2 * length + side) // (2 * side))  # the nearest whole number of tiles
    inner = {
        (2 * i * length + count * multiple) // (2 * count * multiple) * multiple
        for i in range(1, count)
    }
    return [0, *sorted(cut for cut in inner if 0 < cut < length), length]


class TileScales:
    """The scales of tiles (C, height, width) of any size, as `HierarchicalMap.decompose` gives
    those of sides that halve.

    Attributes:
        specs: one a scale, coarsest first, with this tile's shape (that of views and conditions is
            left as it was).
        coded: one a scale, (bands*C, h, w) bool: False where a coefficient is zero for every image.
    Raises:
        ValueError: for a map that does not preserve volume: its coarse pixels would be paid for
            twice.
    """

    def __init__(
        self, hierarchy: HierarchicalMap, shape: tuple[int, int, int], max_value: int = 255
    ):
        if not isinstance(hierarchy, (HaarWavelet, Identity)):
            raise ValueError(
                f"{hierarchy!r} does not preserve volume, so a file would pay for its coarse "
                f"pixels twice: "
                "compress with a wavelet, a pyramid or a VDM"
            )
        self.map, self.shape = hierarchy, tuple(shape)
        channels, height, width = self.shape
        whole = 2**hierarchy.levels
        templates = hierarchy.specs((channels, whole, whole), max_value)
        sides = [(height, width)]
        for _ in range(hierarchy.levels):
            height, width = (height + 1) // 2, (width + 1) // 2
            sides.append((height, width))
        self._sides = sides
        self.specs = tuple(
            dataclasses.replace(spec, shape=(spec.shape[0], *sides[spec.level]))
            for spec in templates
        )
        self.coded = tuple(self._coded(spec) for spec in self.specs)

    def _coded(self, spec) -> NDArray[np.bool_]:
        coded = np.ones((len(spec.bands), spec.shape[0] // len(spec.bands), *spec.shape[1:]), bool)
        if spec.kind == "details":
            height, width = self._sides[spec.level - 1]
            p, q, r = coded
            if height % 2:
                p[:, -1], r[:, -1] = False, False
            if width % 2:
                q[:, :, -1], r[:, :, -1] = False, False
        return coded.reshape(spec.shape)

    @property
    def dims(self) -> int:
        """Coordinates that are coded: as many as there are pixels times channels, whatever the
        sides."""
        return sum(int(coded.sum()) for coded in self.coded)

    def decompose(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """For each scale of int32 tiles (N, C, height, width) its integers and those rebuilt from
        the coarser scales."""
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for _ in range(self.map.levels):
            x = F.pad(x.double(), (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate").to(
                torch.int32
            )
            x, *details = haar_step_integers(x)
            pairs.append((torch.cat(details, dim=1), x))
        return [(x, None), *reversed(pairs)]

    def refine(self, index: int, coarse: Tensor | None, z: Tensor) -> Tensor:
        """The integers rebuilt from scales 0..index, as `HierarchicalMap.refine`, without what was
        repeated."""
        level = self.specs[index].level
        height, width = self._sides[level if index == 0 else level - 1]
        return self.map.refine(index, coarse, z)[..., :height, :width]
