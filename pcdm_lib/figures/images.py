"""Rows of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.figures.style import bare, finish, picture


def image_rows(
    rows: Mapping[str, Sequence[Tensor]] | Sequence[Tensor],
    title: str = "",
    titles: Sequence[str] | None = None,
    *,
    side: float = 0.9,
    per_row: int = 6,
    caption: str = "",
) -> Figure:
    """Images, each drawn equally large.

    Args:
        rows: images (C, H, W) by the name of their row; or a sequence of images, which fill rows
            from left to right. uint8, or floats in 0..1; sizes may differ.
        titles: of a sequence, one an image.
        side: of an image, in inches.
        per_row: images a row, of a sequence.
    """
    names: list[str] = []
    if isinstance(rows, Mapping):
        names, lines = list(rows), list(rows.values())
    else:
        lines = [rows[k : k + per_row] for k in range(0, len(rows), per_row)]
    count = max(len(line) for line in lines)
    lift = 0.16 * max(t.count("\n") + 1 for t in titles) + 0.1 if titles else 0.08
    size = (
        max(side * 1.06 * count + (1.1 if names else 0.1), 4.0),
        (side + lift) * len(lines) + 0.5,
    )
    figure, axes = plt.subplots(
        len(lines), count, figsize=size, squeeze=False, layout="constrained"
    )
    for row, (line, drawn) in enumerate(zip(axes, lines)):
        for column, ax in enumerate(line):
            if column < len(drawn):
                name = titles[row * per_row + column] if titles else ""
                bare(ax, name).imshow(picture(drawn[column]), interpolation="nearest")
            else:
                ax.set_axis_off()
    for line, name in zip(axes, names):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return finish(figure, title, caption)
