"""Figures that several cells or notebooks share. Imported by notebooks only.

Nothing here changes matplotlib's settings on import: a notebook calls `style()` once. Colours are
those of Okabe and Ito, which colour-blind readers can tell apart; signed arrays go from orange over
white (zero) to purple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.maps.scales import Scales

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SIGNED = "PuOr"
BRIGHTNESS = "brightness, image in [-1, 1]"


def style() -> None:
    """Settings of the project's figures, for the session of the notebook that calls it."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "savefig.dpi": 90,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "figure.titlesize": 12,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.interpolation": "nearest",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
        }
    )


def picture(image: Tensor) -> np.ndarray:
    """(C, H, W) uint8, or floats in 0..1, -> (H, W, 3) in 0..1 for imshow."""
    x = image.detach().cpu()
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double().clamp(0, 1)
    return x.expand(3, -1, -1).permute(1, 2, 0).numpy()


def bare(ax: Axes, title: str = "") -> Axes:
    """An axis for a picture: no ticks, a thin frame."""
    ax.set(xticks=[], yticks=[], title=title)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.5, color="0.6")
    return ax


def _signed(ax: Axes, values: np.ndarray, limit: float):
    return ax.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)


def _colours(values: Tensor, limit: float) -> np.ndarray:
    """A signed array (h, w) as RGB pictures, (h, w, 3)."""
    return matplotlib.colormaps[SIGNED](((values / limit + 1) / 2).clamp(0, 1).numpy())[..., :3]


def show_images(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    title: str = "",
    side: float = 1.9,
    per_row: int = 6,
) -> Figure:
    """Images (N, C, H, W), or a list of (C, H, W) of several sizes, uint8 or in 0..1, each drawn
    equally large."""
    count = len(images)
    columns = min(count, per_row)
    rows = -(-count // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.25) * rows + 0.3), squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        bare(ax, titles[i] if titles else "").imshow(picture(image))
    fig.suptitle(title)
    return fig


def show_haar_step(block: Tensor) -> Figure:
    """One Haar step on a 2x2 block of integers: which pixels each band adds and subtracts, and what
    comes out."""
    signs = {"s": "++++", "p": "++--", "q": "+-+-", "r": "+--+"}
    values = block.flatten().tolist()
    fig, axes = plt.subplots(1, 5, figsize=(9.5, 2.9))
    bare(axes[0], "the block").imshow(block.reshape(2, 2), cmap="gray", vmin=-20, vmax=120)
    for ax, (name, row) in zip(axes[1:], signs.items()):
        weights = np.array([1 if sign == "+" else -1 for sign in row]).reshape(2, 2)
        total = int((weights.flatten() * values).sum())
        title = f"{name} = {total}\nhalved: {total / 2:g}".replace("-", "\N{MINUS SIGN}")
        _signed(bare(ax, title), weights, 2.5)
    for ax, row in zip(axes, ["    ", *signs.values()]):
        for i, (value, sign) in enumerate(zip(values, row)):
            colour = "white" if ax is axes[0] and value < 50 else "black"
            ax.text(
                i % 2,
                i // 2,
                f"{sign.strip()}{value}".replace("-", "\N{MINUS SIGN}"),
                ha="center",
                va="center",
                color=colour,
                fontsize=13,
            )
    fig.suptitle("One Haar step: the same four pixels, added and subtracted in four ways")
    return fig


def show_wavelet(scales: Scales, title: str = "") -> Figure:
    """The float scales of a Haar wavelet of one square image (1, C, H, H) in one picture of its
    size: the base in the corner and around it, level by level, the channel means of the details,
        drawn as brightness (coefficient / 2^level)."""
    levels = len(scales) - 1
    details = [v[0] / 2**level for level, v in zip(range(levels, 0, -1), scales.values[1:])]
    limit = _limit(details)
    whole = picture(scales[0][0] / 2 ** (levels + 1) + 0.5)
    for bands in details:
        p, q, r = (_colours(band.mean(0), limit) for band in bands.chunk(3))
        whole = np.vstack([np.hstack([whole, q]), np.hstack([p, r])])
    fig, ax = plt.subplots(figsize=(6.6, 5.4))
    bare(ax, title).imshow(whole)
    side = len(whole)
    for level in range(levels):
        reach = side >> level
        ax.plot([reach / 2 - 0.5] * 2, [-0.5, reach - 0.5], color="0.3", lw=0.8)
        ax.plot([-0.5, reach - 0.5], [reach / 2 - 0.5] * 2, color="0.3", lw=0.8)
        if level < 3:  # there is no room for smaller ones
            for name, x, y in (("q", 1, 0), ("p", 0, 1), ("r", 1, 1)):
                ax.text(
                    (x + 0.03) * reach / 2,
                    (y + 0.03) * reach / 2,
                    f"{name}{level + 1}",
                    va="top",
                    fontsize=11 - level,
                )
    _signed_bar(fig, ax, limit)
    return fig


def show_pyramid(scales: Scales, title: str = "") -> Figure:
    """The float scales of a Laplacian pyramid of one image (1, C, H, W), side by side: base, then
    residuals (channel means), drawn as brightness (an entry at the resolution of level j stands for
    2^j of it)."""
    levels = len(scales) - 1
    residuals = [v[0] / 2**level for level, v in zip(range(levels - 1, -1, -1), scales.values[1:])]
    limit = _limit(residuals)
    fig, axes = plt.subplots(1, levels + 1, figsize=(1.9 * (levels + 1) + 0.6, 2.7))
    for ax, (name, value) in zip(axes, scales.items()):
        bare(ax, f"{name}\n{value.shape[-2]}x{value.shape[-1]}")
    axes[0].imshow(picture(scales[0][0] / 2 ** (levels + 1) + 0.5))
    for ax, residual in zip(axes[1:], residuals):
        _signed(ax, residual.mean(0).numpy(), limit)
    _signed_bar(fig, axes[-1], limit)
    fig.suptitle(title)
    return fig


def _limit(details: Sequence[Tensor]) -> float:
    """End of the colour scale: 98 % of the values of every level lie within."""
    return max(float(np.quantile(v.abs().numpy(), 0.98)) for v in details)


def _signed_bar(fig: Figure, ax: Axes, limit: float) -> None:
    mappable = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), SIGNED)
    fig.colorbar(mappable, ax=ax, extend="both", shrink=0.9, label=BRIGHTNESS)


def show_matrices(
    matrices: Mapping[str, Tensor],
    title: str = "",
    rows: str = "latent entry",
    columns: str = "pixel",
) -> Figure:
    """Matrices side by side on one signed scale; the shape of each stands in its title."""
    limit = max(float(m.abs().max()) for m in matrices.values())
    fig, axes = plt.subplots(
        1, len(matrices), figsize=(3.3 * len(matrices) + 0.6, 3.9), sharey=True
    )
    for ax, (name, m) in zip(axes, matrices.items()):
        drawn = _signed(ax, m.numpy(), limit)
        ax.set(
            title=f"{name}\n{m.shape[0]} entries x {m.shape[1]} pixels",
            xlabel=columns,
            xticks=range(0, m.shape[1], 4),
            yticks=range(0, len(m) + 1, 4),
        )
    axes[0].set(ylabel=rows, ylim=(max(len(m) for m in matrices.values()) - 0.5, -0.5))
    fig.colorbar(drawn, ax=axes, label="derivative (no unit)")
    fig.suptitle(title)
    return fig


def show_progressions(
    progressions: Mapping[str, tuple[Sequence[float], float]],
    title: str = "",
    xlabel: str = "orthonormal coefficient, in pixel steps",
) -> Figure:
    """One number line a band: the values that it can hold, and the one that it does."""
    fig, axes = plt.subplots(
        len(progressions), 1, figsize=(8.5, 0.75 * len(progressions) + 0.9), sharex=True
    )
    for ax, (name, (values, truth)) in zip(axes, progressions.items()):
        ax.axhline(0, color="0.8", lw=1, zorder=0)
        ax.plot(values, np.zeros(len(values)), "|", color=BLUE, ms=13, mew=1.6)
        ax.plot(truth, 0, "o", color=VERMILION, ms=8)
        ax.set(yticks=[], ylim=(-1, 1))
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines[["left", "right", "top"]].set_visible(False)
        if ax is not axes[-1]:
            ax.spines["bottom"].set_visible(False)
            ax.tick_params(bottom=False)
    axes[-1].set_xlabel(xlabel)
    fig.suptitle(title)
    return fig


def outline(ax: Axes, corners: Sequence[tuple[float, float]]) -> None:
    """A cell drawn over a scatter plot, by its corners."""
    ax.fill(*zip(*corners), facecolor="none", edgecolor=VERMILION, lw=2, zorder=3)
