"""Figures of volume-preserving maps: one Haar step, the scales of an image, Jacobians, grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.figures.style import BLUE, SIGNED, SMALL, VERMILION, bare, finish, minus, picture
from pcdm_lib.maps.scales import Scales

BRIGHTNESS = "brightness, image in [\N{MINUS SIGN}1, 1]"


def _signed(ax: Axes, values: np.ndarray, limit: float):
    return ax.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)


def _colours(values: Tensor, limit: float) -> np.ndarray:
    """A signed array (h, w) as RGB pictures, (h, w, 3)."""
    return matplotlib.colormaps[SIGNED](((values / limit + 1) / 2).clamp(0, 1).numpy())[..., :3]


def haar_step(block: Tensor) -> Figure:
    """One Haar step on a 2x2 block of integers: which pixels each band adds and subtracts, and what
    comes out."""
    signs = {"s": "++++", "p": "++--", "q": "+-+-", "r": "+--+"}
    values = block.flatten().tolist()
    fig, axes = plt.subplots(1, 5, figsize=(9.5, 2.9))
    bare(axes[0], "the block").imshow(block.reshape(2, 2), cmap="gray", vmin=-20, vmax=120)
    for ax, (name, row) in zip(axes[1:], signs.items()):
        weights = np.array([1 if sign == "+" else -1 for sign in row]).reshape(2, 2)
        total = int((weights.flatten() * values).sum())
        title = minus(f"{name} = {total}\nhalved: {total / 2:g}")
        _signed(bare(ax, title), weights, 2.5)
    for ax, row in zip(axes, ["    ", *signs.values()]):
        for i, (value, sign) in enumerate(zip(values, row)):
            colour = "white" if ax is axes[0] and value < 50 else "black"
            ax.text(
                i % 2,
                i // 2,
                minus(f"{sign.strip()}{value}"),
                ha="center",
                va="center",
                color=colour,
                fontsize=13,
            )
    return finish(fig, "One Haar step: the same four pixels, added and subtracted in four ways")


def wavelet_scales(scales: Scales, title: str = "") -> Figure:
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
    bare(ax).imshow(whole)
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
                    fontsize=max(SMALL, 11 - level),
                    bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
                )
    _signed_bar(fig, ax, limit)
    return finish(fig, title)


def pyramid_scales(scales: Scales, title: str = "") -> Figure:
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
    return finish(fig, title)


def _limit(details: Sequence[Tensor]) -> float:
    """End of the colour scale: 98 % of the values of every level lie within."""
    return max(float(np.quantile(v.abs().numpy(), 0.98)) for v in details)


def _signed_bar(fig: Figure, ax: Axes, limit: float) -> None:
    mappable = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), SIGNED)
    fig.colorbar(mappable, ax=ax, extend="both", shrink=0.9, label=BRIGHTNESS)


def matrices(
    by_name: Mapping[str, Tensor],
    title: str = "",
    rows: str = "latent entry",
    columns: str = "pixel",
) -> Figure:
    """Matrices side by side on one signed scale; the shape of each stands in its title."""
    limit = max(float(m.abs().max()) for m in by_name.values())
    fig, axes = plt.subplots(1, len(by_name), figsize=(3.3 * len(by_name) + 0.6, 3.9), sharey=True)
    for ax, (name, m) in zip(axes, by_name.items()):
        drawn = _signed(ax, m.numpy(), limit)
        ax.set(
            xlabel=columns,
            xticks=range(0, m.shape[1], 4),
            yticks=range(0, len(m) + 1, 4),
        )
        ax.set_title(f"{name}\n{m.shape[0]} entries x {m.shape[1]} pixels")
    axes[0].set(ylabel=rows, ylim=(max(len(m) for m in by_name.values()) - 0.5, -0.5))
    fig.colorbar(drawn, ax=axes, label="derivative (no unit)")
    return finish(fig, title)


def progressions(
    lines: Mapping[str, tuple[Sequence[float], float]],
    title: str = "",
    xlabel: str = "orthonormal coefficient, in pixel steps",
) -> Figure:
    """One number line a band: the values that it can hold, and the one that it does."""
    fig, axes = plt.subplots(len(lines), 1, figsize=(8.5, 0.75 * len(lines) + 0.9), sharex=True)
    for ax, (name, (values, truth)) in zip(axes, lines.items()):
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
    return finish(fig, title)


def cell_outline(ax: Axes, corners: Sequence[tuple[float, float]]) -> None:
    """A cell drawn over a scatter plot, by its corners."""
    ax.fill(*zip(*corners), facecolor="none", edgecolor=VERMILION, lw=2, zorder=3)
