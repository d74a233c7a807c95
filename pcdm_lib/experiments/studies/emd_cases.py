"""Random differences of images on which earth mover's distances are compared: blobs, white noise,
shifted images."""

from __future__ import annotations

import numpy as np

FAMILIES = ("blobs", "noise", "shifts")


def difference(family: str, side: int, random: np.random.Generator) -> np.ndarray:
    """A random difference of equal masses, (side, side): of two images of Gaussian blobs, white
    noise, or a blob (a quarter of a side wide at most) on noise a tenth as high and the same moved
    by up to a quarter of the side."""
    if family == "noise":
        f = random.normal(size=(side, side))
    elif family == "blobs":
        first, second = (
            np.sum([_blob(side, random) for _ in range(random.integers(1, 4))], axis=0)
            for _ in range(2)
        )
        f = first / first.sum() - second / second.sum()
    elif family == "shifts":
        room = side // 4
        big = np.zeros((side, side))
        inner = slice(room, side - room)
        image = _blob(side, random)[inner, inner] + 0.1 * random.uniform(
            size=(side - 2 * room,) * 2
        )
        big[inner, inner] = image
        step = random.integers(-room, room + 1, size=2)
        f = big - np.roll(big, step if step.any() else (0, 1), axis=(0, 1))
    else:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    return f - f.mean()


def _blob(side: int, random: np.random.Generator) -> np.ndarray:
    row, col = np.mgrid[:side, :side]
    centre, width = random.uniform(0, side - 1, size=2), random.uniform(0.5, side / 4)
    return np.exp(-((row - centre[0]) ** 2 + (col - centre[1]) ** 2) / (2 * width**2)) + 1e-9
