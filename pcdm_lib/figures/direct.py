"""Figures of the direct cascade: the order of the blocks, and what it says of one integer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from pcdm_lib.figures.style import BLUE, COLOURS, VERMILION, bare, finish
from pcdm_lib.models.direct import PHASES


def phases(side: int = 6) -> Figure:
    """The blocks of a level, each with the number of the phase in which it is coded, and what is
    known when a block of each phase is."""
    order = {place: number for number, place in enumerate(PHASES)}
    grid = np.array([[order[row % 2, column % 2] for column in range(side)] for row in range(side)])
    fig, axes = plt.subplots(1, 1 + len(PHASES), figsize=(10, 2.7))
    colours = ListedColormap(["white", *COLOURS[: len(PHASES)]])
    bare(axes[0], "the four phases").imshow(grid + 1, cmap=colours, vmin=0, vmax=len(PHASES))
    for (row, column), number in np.ndenumerate(grid):
        axes[0].text(column, row, number + 1, ha="center", va="center", color="white")
    for number, ax in enumerate(axes[1:]):
        known = np.where(grid < number, grid + 1, 0)
        bare(ax, f"known in phase {number + 1}").imshow(
            known, cmap=colours, vmin=0, vmax=len(PHASES)
        )
        where = np.argwhere(grid == number)
        ax.plot(where[:, 1], where[:, 0], "x", color="0.4")
    caption = (
        "each square is a block of 2x2 pixels of the finer image; crosses are the blocks that are "
        "coded together. The coarse image is known everywhere"
    )
    return finish(fig, "Every block is coded once, and later ones see more", caption)


def conditionals(rows: Mapping[str, tuple[Sequence[int], Sequence[float], int]]) -> Figure:
    """Distributions over the integers that are allowed, one panel each.

    Args:
        rows: by what is coded: the allowed values, their probabilities, and the true value.
    """
    fig, axes = plt.subplots(1, len(rows), figsize=(3.3 * len(rows), 3.0), squeeze=False)
    for ax, (name, (values, probabilities, true)) in zip(axes[0], rows.items()):
        step = values[1] - values[0] if len(values) > 1 else 1
        colours = [VERMILION if value == true else BLUE for value in values]
        ax.bar(values, probabilities, width=0.8 * step, color=colours)
        bits = -np.log2(probabilities[list(values).index(true)])
        ax.set_title(f"{name} = {true}: {bits:.2f} bits")
        ax.set_xlabel("allowed values")
        ax.set_ylabel("probability")
    return finish(fig, "What the model says of the next integer; the true one in orange")
