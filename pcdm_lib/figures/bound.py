"""Figures of the notebook that computes the bound of Eq. 15: one image, its scales, their noise,
and the bits that they cost. For notebooks only.

Functions take arrays that a notebook has computed and return a figure. Bits are bits per dimension
unless an axis says otherwise. `label` is the small print below a figure: which data, how many
draws, which seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import Tensor
from torch.nn import functional as F

from pcdm_lib.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    SIGNED,
    SKY,
    SMALL,
    VERMILION,
    bare,
    finish,
    picture,
)
from pcdm_lib.likelihood.evaluation import TERMS
from pcdm_lib.maps import HaarWavelet

BPD = "bits per dimension"
GAMMA = r"noise level $\gamma = \log\,\sigma^2/\alpha^2$"
TERM_COLOURS = dict(zip(TERMS, (GREEN, BLUE, ORANGE)))
GREY = "0.35"
PATCH = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 1.5,
}  # behind words, so that no line runs through them

Table = Mapping[str, Mapping[str, float]]  # scale, term -> bits per dimension
Curve = tuple[Sequence[float], Tensor]  # gammas, mean squared error of eps_hat at each


def _brightness(z: Tensor, sigma: float) -> np.ndarray:
    """A noisy image as a picture, with less contrast where noise would be clipped away."""
    return picture(0.5 + z / (2 + 3 * sigma))


# ---- the idea


def idea(image: Tensor, noise_levels: Sequence[float] = (-3.0, 0.0, 5.0)) -> Figure:
    """The whole idea as a drawing: image, map, two scales, one diffusion for each, bits.

    Args:
        image: (3, H, W) uint8 with even sides.
        noise_levels: the gammas at which the noisy scales are drawn.
    """
    figure = plt.figure(figsize=(10, 4.1), layout="none")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 10), ylim=(0, 4.1))  # inches
    canvas.set_axis_off()
    base, details = HaarWavelet(1).analyse(image.double()[None] * 2 / 255 - 1)
    generator = torch.Generator().manual_seed(0)
    bare(_place(figure, 0.25, 1.15, 1.5)).imshow(picture(image))
    _write(canvas, 1.0, 2.85, "image $x$")
    for y, name, scale in ((2.35, "base $z_1$", base[0]), (0.3, "details $z_2$", details[0])):
        _arrow(canvas, (1.85, 1.9), (2.6, y + 0.5))
        _noise_chain(figure, canvas, y, scale, noise_levels, generator)
        _write(canvas, 3.2, y + 1.17, name)
        _arrow(canvas, (7.45, y + 0.5), (8.15, y + 0.5))
    _write(canvas, 2.12, 2.95, "map $h$")
    _arrow(canvas, (3.2, 2.28), (3.2, 1.68), colour=VERMILION)
    _write(canvas, 3.3, 1.93, "shown to the denoiser of the details", VERMILION, "left")
    _write(canvas, 8.2, 2.85, r"$-\log_2 P(z_1)$" "\n" r"$\leq$ bits of the base", ha="left")
    _write(
        canvas, 8.2, 0.8, r"$-\log_2 P(z_2\,|\,z_1)$" "\n" r"$\leq$ bits of the details", ha="left"
    )
    _write(canvas, 8.75, 1.85, r"$+$", size=18)
    figure.suptitle(
        "Image, map, scales, one diffusion each, bits: the bound of Eq. 15 is a sum over scales",
        x=0.01,
        y=0.98,
        ha="left",
    )
    return figure


def _noise_chain(
    figure: Figure,
    canvas: Axes,
    y: float,
    scale: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
) -> None:
    """A scale (bands * 3, h, w) and its noisy versions, with arrows for noise and denoiser."""
    shown = (
        scale if len(scale) == 3 else scale.unflatten(0, (3, 3)).mean(1)
    )  # details: one picture of three bands
    unit = float(shown.std())
    eps = torch.randn(shown.shape, generator=generator, dtype=shown.dtype)
    for column, gamma in enumerate((-20.0, *levels)):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
        z = alpha * shown / unit + sigma * eps
        left = 2.7 + 1.25 * column
        ax = bare(_place(figure, left, y, 1.0))
        if len(scale) == 3:
            ax.imshow(picture(0.5 + z / 5))
        else:
            blank = torch.zeros_like(z[0])
            tile = torch.cat([torch.cat([blank, z[1]], 1), torch.cat([z[0], z[2]], 1)])
            ax.imshow(tile.numpy(), cmap=SIGNED, vmin=-3, vmax=3)
        if column:
            _arrow(canvas, (left - 0.24, y + 0.65), (left - 0.01, y + 0.65), GREY)
            _arrow(canvas, (left - 0.01, y + 0.35), (left - 0.24, y + 0.35), BLUE)
    _write(canvas, 5.7, y + 1.17, r"noise is added $\rightarrow$", GREY)
    _write(canvas, 5.7, y - 0.17, r"$\leftarrow$ a denoiser takes it away", BLUE)


def _place(figure: Figure, x: float, y: float, side: float) -> Axes:
    """A square axis at inches (x, y) of the figure."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, y / height, side / width, side / height))


def _write(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    colour: str = "black",
    ha: str = "center",
    size: float = 10,
) -> None:
    ax.text(x, y, text, color=colour, ha=ha, va="center", fontsize=size)


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "black"
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=colour, shrinkA=0, shrinkB=0
        )
    )


# ---- noise and denoiser


def surviving(y: Tensor, gamma: float, block: int = 1) -> float:
    """Share of the variance of z_t that is still the image, after averaging over square blocks.

    Args:
        y: an image (C, H, W) in [-1, 1].
        block: side of the blocks in pixels.

    Example:
        >>> surviving(torch.randn(3, 64, 64), 0.0)  # as much signal as noise: about one half
    """
    signal = math.exp(-gamma) * float(F.avg_pool2d(y[None], block).var())
    return signal / (signal + 1 / block**2)


def forward_process(
    noisy: Tensor, y: Tensor, gammas: Sequence[float], block: int, title: str, label: str = ""
) -> Figure:
    """One image at several noise levels: as it is, and averaged over blocks.

    Args:
        noisy: z_t at every gamma, (G, 3, H, W).
        y: the image without noise, (3, H, W) in [-1, 1].
        block: side of the blocks of the second row.
    """
    figure, axes = plt.subplots(2, len(gammas), figsize=(1.75 * len(gammas), 4.7), squeeze=False)
    for column, z, gamma in zip(axes.T, noisy, gammas):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
        bare(column[0], f"$\\gamma = {gamma:g}$\n$\\alpha$ = {alpha:.2f},  $\\sigma$ = {sigma:.2f}")
        column[0].imshow(_brightness(z, sigma))
        column[0].set_xlabel(f"{100 * surviving(y, gamma):.0f} % image")
        bare(column[1]).imshow(_brightness(F.avg_pool2d(z[None], block)[0], sigma / block))
        column[1].set_xlabel(f"{100 * surviving(y, gamma, block):.0f} % image")
    axes[0, 0].set_ylabel("pixels of $z_t$")
    axes[1, 0].set_ylabel(f"means of {block}x{block} pixels")
    return finish(figure, title, label)


def denoiser_at_work(
    gammas: Sequence[float],
    noisy: Tensor,
    guesses: Tensor,
    curves: Mapping[str, Curve],
    title: str,
    label: str = "",
) -> Figure:
    """What a denoiser sees and guesses, above its error, at the same places of the gamma axis.

    Args:
        gammas: noise levels of the pictures.
        noisy, guesses: (G, 3, H, W), z_t and the guess of the image, in [-1, 1].
        curves: {name: (gammas, mean squared error of eps_hat)}; the last one is drawn thick.
    """
    figure = plt.figure(figsize=(9.6, 5.9), layout="none")
    left, width, side = 0.085, 0.9, 0.98
    ax = figure.add_axes((left, 0.125, width, 0.4))
    _draw_curves(ax, curves)
    limits = (
        min(float(g[0]) for g, _ in curves.values()),
        max(float(g[-1]) for g, _ in curves.values()),
    )
    ax.set(
        xlabel=GAMMA, ylabel=r"mean of $(\epsilon - \hat\epsilon)^2$", xlim=limits, ylim=(0, 1.06)
    )
    ax.legend(loc="lower left")
    for gamma, z, guess in zip(gammas, noisy, guesses):
        place = 9.6 * (left + width * (gamma - limits[0]) / (limits[1] - limits[0])) - side / 2
        sigma = math.sqrt(1 / (1 + math.exp(-gamma)))
        seen, made = (bare(_place(figure, place, y, side)) for y in (4.3, 3.25))
        seen.imshow(_brightness(z, sigma))
        made.imshow(picture((guess + 1) / 2))
        seen.set_title(f"$\\gamma = {gamma:g}$")
        if gamma == gammas[0]:
            seen.set_ylabel("sees $z_t$")
            made.set_ylabel("guess")
    figure.suptitle(title, x=0.01, y=0.99, ha="left")
    figure.text(0.01, 0.012, label, fontsize=SMALL, color=GREY)
    return figure


def _draw_curves(ax: Axes, curves: Mapping[str, Curve], unit: float = 1.0) -> None:
    """Curves over gamma, times `unit`: broken thin lines, and the last one whole and thick."""
    styles = ((SKY, "--"), (VERMILION, ":"), (GREEN, "-."))
    last = list(curves)[-1]
    for (name, (gammas, error)), (colour, dashes) in zip(
        curves.items(), (*styles[: len(curves) - 1], (BLUE, "-"))
    ):
        ax.plot(
            gammas,
            error * unit,
            color=colour,
            ls=dashes,
            lw=2.4 if name == last else 1.8,
            label=name,
        )


# ---- terms and areas


def area_bits(gammas: Sequence[float] | Tensor, error: Tensor) -> float:
    """Area under half the error over gamma, in bits: the diffusion term of Eq. 16 per dimension.

    Between the gammas the error is taken as linear (trapezoidal rule).

    Example:
        >>> area_bits([0.0, 2.0], torch.tensor([1.0, 1.0]))  # an error of 1 over two units: 1 nat
        1.4426950408889634
    """
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (gammas, error))
    return float(torch.trapezoid(y, x)) / (2 * math.log(2))


def three_terms(
    terms: Mapping[str, float],
    entropy: float,
    bounds: Tensor,
    lengths: Tensor,
    title: str,
    label: str = "",
) -> Figure:
    """The terms of a bound beside the entropy, and every image's bound against its ideal length.

    Args:
        terms: {name: bits per dimension}.
        entropy: in bits per dimension.
        bounds, lengths: (K,) bits of a whole image: its bound, and -log2 P(x).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5), width_ratios=(1.25, 1))
    rows = {**terms, "sum": sum(terms.values()), "entropy": entropy}
    for y, (name, value) in enumerate(rows.items()):
        colour = TERM_COLOURS.get(name, "black")
        left.plot([1e-5, value], [y, y], color=colour, lw=1.5)
        left.plot(value, y, "s" if name == "entropy" else "o", color=colour, ms=8)
        left.text(value * 1.5, y, f"{value:.4f}" if value < 0.1 else f"{value:.3f}", va="center")
    left.set(
        xscale="log",
        xlim=(1e-5, 40),
        yticks=range(len(rows)),
        yticklabels=list(rows),
        xlabel=f"{BPD} (logarithmic axis)",
    )
    left.set_ylim(len(rows) - 0.6, -0.4)
    top = 1.05 * float(max(lengths.max(), bounds.max()))
    right.plot([0, top], [0, top], color="0.6", lw=1)
    right.plot(lengths, bounds, "o", color=BLUE, ms=4, alpha=0.6)
    right.set(
        xlabel=r"$-\log_2 P(x)$  [bits]", ylabel="bound  [bits]", xlim=(0, top), ylim=(0, top)
    )
    right.set_title("each point is one image")
    return finish(figure, title, label)


def loss_areas(panels: Mapping[str, Mapping[str, Curve]], title: str, label: str = "") -> Figure:
    """Half the error, in bits, over gamma: the area under a curve is its diffusion term.

    The area under the last curve of a panel is shaded.

    Args:
        panels: {title: {name: (gammas, mean squared error of eps_hat)}}; the legend has the areas.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(9.8, 4.0), sharey=True)
    for ax, (name, curves) in zip(axes, panels.items()):
        _draw_curves(
            ax,
            {f"{key}: {area_bits(*c):.1f}": c for key, c in curves.items()},
            1 / (2 * math.log(2)),
        )
        gammas, error = list(curves.values())[-1]
        ax.fill_between(gammas, error / (2 * math.log(2)), color=BLUE, alpha=0.15, lw=0)
        for end, text, ha in ((gammas[0], " t = 0", "left"), (gammas[-1], "t = 1 ", "right")):
            ax.axvline(float(end), color="0.5", ls=":", lw=1)
            ax.text(
                float(end), 0.62 if ha == "right" else 1.12, text, ha=ha, va="center", color=GREY
            )
        ax.set(
            xlabel=GAMMA,
            title=name,
            ylim=(0, 1.2),
            xlim=(float(gammas[0]) - 0.4, float(gammas[-1]) + 0.4),
        )
        ax.legend(
            loc="upper right", bbox_to_anchor=(0.96, 1.0), title=f"area in {BPD}", alignment="left"
        )
    axes[0].set_ylabel("bits per dimension\nper unit of $\\gamma$")
    return finish(figure, title, label)


def term_bars(
    tables: Mapping[str, Table],
    lines: Mapping[str, float],
    title: str,
    label: str = "",
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Bounds as bars, stacked scale by scale and term by term.

    Args:
        tables: {model: {scale: {term: bits per dimension of the whole image}}}, as
            `Evaluation.table` gives it; its totals are left out.
        lines: {name: bits per dimension}, broken lines to compare with.
        marks: {model: where the first scale's part would end at best}, drawn as a diamond.
    """
    figure, ax = plt.subplots(figsize=(9.6, 0.95 * len(tables) + 1.9))
    ends = [_stack(ax, y, table) for y, table in enumerate(tables.values())]
    longest = max([*ends, *lines.values()])
    for y, (name, end) in enumerate(zip(tables, ends)):
        ax.text(end + 0.015 * longest, y, f"{end:.2f}", va="center", fontweight="bold", bbox=PATCH)
        if marks and name in marks:
            ax.plot(marks[name], y, "D", color="black", mfc="white", ms=7)
    for name, value in lines.items():
        ax.plot([value] * 2, [-0.4, len(tables) - 0.5], color="0.3", ls="--", lw=1.2, zorder=0)
        ax.text(value, len(tables) - 0.45, f"{name} {value:.2f}", ha="center", va="top", color=GREY)
    ax.set(yticks=range(len(tables)), yticklabels=list(tables), xlabel=BPD, xlim=(0, 1.1 * longest))
    ax.set_ylim(len(tables) - 0.1, -0.65)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in TERM_COLOURS.values()]
    figure.legend(handles, list(TERM_COLOURS), loc="outside upper right", ncols=3)
    return finish(figure, title, label)


def _stack(ax: Axes, y: float, table: Table) -> float:
    """One bar, and where it ends."""
    end, scales = 0.0, {name: row for name, row in table.items() if name != "total"}
    for scale, row in scales.items():
        begin = end
        for term, colour in TERM_COLOURS.items():
            ax.barh(y, row[term], 0.5, left=end, color=colour, edgecolor="white", lw=0.5)
            end += row[term]
        if len(scales) > 1:
            middle = (begin + end) / 2
            ax.text(
                middle,
                y - 0.28,
                f"{scale}: {end - begin:.2f}",
                ha="center",
                va="bottom",
                bbox=PATCH,
            )
            ax.plot([end] * 2, [y - 0.3, y + 0.3], color="black", lw=1.2)
    return end


# ---- samples


def sampling_path(
    times: Sequence[float],
    noisy: Tensor,
    guesses: Tensor,
    samples: Tensor,
    images: Tensor,
    title: str,
    label: str = "",
) -> Figure:
    """One sample on its way from noise, and finished samples above images of the data.

    Args:
        times: t of the steps that are drawn.
        noisy, guesses: (T, 3, H, W): z_t and the guess of the image, in [-1, 1].
        samples, images: (T, 3, H, W) uint8.
    """
    rows = {
        "$z_t$": [_brightness(z, t) for z, t in zip(noisy, times)],
        "guess": [picture((g + 1) / 2) for g in guesses],
        "finished": [picture(s) for s in samples],
        "held out": [picture(x) for x in images],
    }
    figure, axes = plt.subplots(4, len(times), figsize=(1.05 * len(times) + 0.8, 5.2))
    for row, (name, pictures) in zip(axes, rows.items()):
        for ax, shown in zip(row, pictures):
            bare(ax).imshow(shown)
        row[0].set_ylabel(name)
    for ax, t in zip(axes[0], times):
        ax.set_title(f"t = {t:.2f}")
    return finish(figure, title, label)
