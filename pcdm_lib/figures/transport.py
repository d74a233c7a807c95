"""Figures of the notebooks on earth mover's distances: who moves where, wavelets beside the exact
distance, the bound, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LINES,
    ORANGE,
    PURPLE,
    SIGNED,
    SKY,
    SMALL,
    VERMILION,
    bare,
    finish,
    legend,
    minus,
    picture,
)
from pcdm_lib.transport.bound import TransportBound
from pcdm_lib.transport.exact import Plan

GAMMA = r"noise level $\gamma$ (clean to noisy)"
THETA_RATIO = r"$\theta_2 / \theta_1$"
NOISE = r"$\sigma$, noise added"


# ---------------------------------------------------------------- plans


def arrows(ax: Axes, f: np.ndarray, plan: Plan, title: str = "") -> None:
    """A signed image (H, W), and its plan as arrows from purple (surplus) to orange (deficit), the
    darker the more mass; rings: mass created, crosses: mass destroyed, of a size that goes with the
    mass."""
    limit = float(np.abs(f).max())
    bare(ax, title).imshow(f, cmap=SIGNED, vmin=-1.6 * limit, vmax=1.6 * limit)
    if len(plan.mass):
        shade = np.clip(plan.mass / plan.mass.max(), 0.08, 0.9)
        order = np.argsort(shade)
        colours = np.zeros((len(order), 4))
        colours[:, 3] = shade[order]
        ax.quiver(
            plan.from_col[order],
            plan.from_row[order],
            (plan.to_col - plan.from_col)[order],
            (plan.to_row - plan.from_row)[order],
            color=colours,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.006,
            headwidth=4,
            headlength=4.5,
            headaxislength=4,
        )
    for mass, marker, colour in ((plan.created, "o", BLUE), (plan.destroyed, "x", VERMILION)):
        rows, cols = np.nonzero(mass > 0)
        style: dict[str, Any] = (
            {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
        )
        ax.scatter(
            cols,
            rows,
            s=70 * np.sqrt(mass[rows, cols] / limit),
            marker=marker,
            linewidths=1.3,
            **style,
        )


def transport_plans(
    panels: Mapping[str, tuple[np.ndarray, Plan]], title: str, side: float = 3.1
) -> Figure:
    """`arrows` side by side, by title."""
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(side * len(panels), side + 0.75),
        squeeze=False,
        layout="constrained",
    )
    for ax, (name, (f, plan)) in zip(axes[0], panels.items()):
        arrows(ax, f, plan, name)
    return finish(figure, title)


def curves(
    x: Sequence[float],
    by_name: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    marks: Mapping[str, float] | None = None,
    log: str = "",
    size: tuple[float, float] = (7, 3.6),
) -> Figure:
    """Curves over common values of x, each with its own colour and dashes; vertical lines by name;
    `log` any of "x", "y", "xy"."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    for index, (name, y) in enumerate(by_name.items()):
        ax.plot(
            x, y, LINES[index % len(LINES)], marker="o", ms=3.5, color=COLOURS[index], label=name
        )
    for name, place in (marks or {}).items():
        ax.axvline(place, color="0.6", ls=":", lw=1)
        ax.text(
            place,
            0.98,
            f" {name}",
            transform=ax.get_xaxis_transform(),
            va="top",
            fontsize=SMALL,
            color=GREY,
        )
    ax.set(
        xlabel=xlabel,
        ylabel=ylabel,
        xscale="log" if "x" in log else "linear",
        yscale="log" if "y" in log else "linear",
    )
    legend(ax)
    return finish(figure, title)


# ---------------------------------------------------------------- wavelets


def distance_ratios(
    found: Mapping[str, Mapping[str, np.ndarray]], title: str, label: str = ""
) -> Figure:
    """Wavelet over exact distance: one panel a wavelet, one row of points a family, the median in
    black. `found[wavelet][family]`."""
    figure, axes = plt.subplots(
        1,
        len(found),
        figsize=(3.1 * len(found) + 0.8, 2.9),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    scatter = np.random.default_rng(0)
    for ax, (wavelet, families) in zip(axes, found.items()):
        for row, (values, colour) in enumerate(
            zip(families.values(), (BLUE, VERMILION, GREEN, PURPLE, ORANGE))
        ):
            ax.plot(
                values,
                row + scatter.uniform(-0.2, 0.2, len(values)),
                "o",
                ms=3.5,
                alpha=0.6,
                mew=0,
                color=colour,
            )
            ax.plot([np.median(values)] * 2, [row - 0.35, row + 0.35], color=BLACK, lw=2)
        every = np.concatenate(list(families.values()))
        ax.set(
            xscale="log",
            xlabel="wavelet / exact distance (no unit)",
            title=f"{wavelet}: largest over least {every.max() / every.min():.1f}",
        )
        ax.set_xticks(ticks := [5, 10, 20, 40], [str(t) for t in ticks])
        ax.set_xticks([], minor=True)
    axes[0].set(
        yticks=range(len(families)), yticklabels=list(families), ylim=(len(families) - 0.5, -0.5)
    )
    return finish(figure, title, label)


def crossings(
    places: Sequence[int],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    side: int,
    title: str,
) -> Figure:
    """What a step of one pixel costs by each wavelet over its true cost, against the place: one
    panel a thing that steps."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.1), sharey=True, layout="constrained"
    )
    for ax, (name, curves) in zip(axes, panels.items()):
        for colour, line, (wavelet, values) in zip(COLOURS, LINES, curves.items()):
            ax.plot(
                places,
                values,
                line,
                marker="o",
                ms=3,
                color=colour,
                label=f"{wavelet}: {min(values):.0f} to {max(values):.0f}",
            )
        level = side
        while level > 2:  # boundaries of dyadic blocks, the longer the coarser
            for edge in range(level // 2, side, level):
                ax.axvline(edge - 1, ymax=0.15 + 0.85 * level / side, color="0.85", lw=1, zorder=0)
            level //= 2
        ax.set(yscale="log", xlabel="column it starts from", title=name)
        legend(ax)
    axes[0].set_ylabel("wavelet / exact distance (no unit)")
    return finish(figure, title)


# ---------------------------------------------------------------- Theorem 5.1


def _bar(values: np.ndarray) -> float:
    """Two standard errors of the mean of values (N, C), from the spread over N images."""
    return 2 * float(values.mean(1).std(ddof=1)) / len(values) ** 0.5


def norms_and_bounds(
    gammas: Sequence[float],
    found: Sequence[TransportBound],
    names: Sequence[str],
    constants: np.ndarray,
    label: str = "",
) -> Figure:
    """Left: mean norms of the scales, what training minimises. Right: the same in pixels, their
    sum, and the exact distance below it.

    Means over images and channels; bars are two standard errors over images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.3), layout="constrained")
    for index, name in enumerate(names):
        norms = np.array([b.norms[index].mean() for b in found])
        left.errorbar(
            gammas,
            norms,
            [_bar(b.norms[index]) for b in found],
            fmt=LINES[index],
            marker="o",
            ms=3.5,
            capsize=2,
            color=COLOURS[index + 1],
            label=name,
        )
        right.plot(
            gammas,
            constants[index] * norms,
            LINES[index],
            marker="o",
            ms=3.5,
            color=COLOURS[index + 1],
            label=f"{name}: $C_s$ = {constants[index]:.0f} times its norm",
        )
    for name, pick, colour, line in (
        ("bound (2), equal weights", lambda b: b.bound, SKY, ":"),
        ("bound (1), scale by scale", lambda b: b.by_scales, BLUE, "--"),
        ("exact distance W", lambda b: b.exact, BLACK, "-"),
    ):
        right.errorbar(
            gammas,
            [pick(b).mean() for b in found],
            [_bar(pick(b)) for b in found],
            fmt=line,
            color=colour,
            lw=2,
            capsize=2,
            label=name,
        )
    left.set(
        yscale="log",
        xlabel=GAMMA,
        ylabel="norm of the error (no unit)",
        title="What training minimises",
    )
    right.set(
        yscale="log",
        xlabel=GAMMA,
        ylabel="mass times pixels",
        title="What it is worth in transport",
    )
    legend(left)
    legend(right)
    title = "What training minimises, and the bound that follows for the distance"
    return finish(figure, title, label)


def bound_shapes(
    gammas: Sequence[float],
    found: Sequence[TransportBound],
    shrunk: tuple[np.ndarray, np.ndarray],
    label: str = "",
) -> Figure:
    """Distance against the sum of squares, a point an image, channel and noise level; one error
    shrunk step by step (squares, distances); and the two shapes of bound: the printed one, whose
    slope is 1 whatever its constant, and the one with a root, whose slope is 1/2."""
    figure, ax = plt.subplots(figsize=(7.5, 5.0), layout="constrained")
    for gamma, bound, shade in zip(gammas, found, np.linspace(0.15, 0.85, len(found))):
        drawn = ax.plot(
            bound.squares.ravel(),
            bound.exact.ravel(),
            "o",
            ms=3.5,
            mew=0,
            color=plt.colormaps["viridis"](shade),
        )
        drawn[0].set_label(
            minus(f"errors of the scores, $\\gamma$ = {gamma:g}")
            if gamma in (gammas[0], gammas[-1])
            else None
        )
    ax.plot(*shrunk, "x", color=VERMILION, label="one of them, shrunk to a half again and again")
    x = np.geomspace(min(shrunk[0].min(), 1) / 2, 3 * max(b.squares.max() for b in found), 50)
    ax.plot(
        x,
        found[0].constant * np.sqrt(x),
        "-",
        color=BLUE,
        label="corrected: C times the root, proven",
    )
    needed = max(b.printed_constant.max() for b in found)
    ax.plot(
        x,
        needed * x,
        "--",
        color=ORANGE,
        label="printed: the constant that serves all errors of this model",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="sum of squares over all scales (no unit)",
        ylabel="exact distance W, mass times pixels",
    )
    legend(ax)
    title = "Below both lines, until errors shrink: then the printed one is crossed"
    return finish(figure, title, label)


def denoising_error(
    image: Tensor,
    noisy: Tensor,
    error: np.ndarray,
    scales: Mapping[str, np.ndarray],
    found: TransportBound,
    gamma: float,
) -> Figure:
    """One image, its noisy form, the error of one channel (H, W), its parts by scale, and both
    sides of the theorem for it."""
    figure, axes = plt.subplots(
        1,
        4 + len(scales),
        figsize=(2.15 * (4 + len(scales)), 2.7),
        width_ratios=[1] * (3 + len(scales)) + [1.3],
        layout="constrained",
    )
    bare(axes[0], "photograph").imshow(picture(image))
    bare(axes[1], minus(f"$\\gamma$ = {gamma:g}")).imshow(picture(noisy))
    limit = max(float(np.quantile(np.abs(error), 0.99)), 1e-9)
    for ax, (name, part) in zip(axes[2:], {"error, green": error, **scales}.items()):
        drawn = bare(ax, name).imshow(part, cmap=SIGNED, vmin=-limit, vmax=limit)
    figure.colorbar(
        drawn, ax=axes[2:-1], shrink=0.75, extend="both", label=r"$\epsilon - \hat\epsilon$"
    )
    sides = {
        "exact": found.exact[0, 0],
        "bound (1)": found.by_scales[0, 0],
        "bound (2)": found.bound[0, 0],
    }
    for row, (value, colour) in enumerate(zip(sides.values(), (BLACK, BLUE, SKY))):
        axes[-1].plot(value, row, "o", ms=8, color=colour)
        axes[-1].text(value * 1.35, row, f"{value:.0f}", va="center", fontsize=SMALL)
    axes[-1].set(
        xlabel="mass times pixels",
        title="W and its bounds",
        xscale="log",
        xlim=(80, 1e5),
        ylim=(-0.6, 2.6),
    )
    axes[-1].set_yticks(range(3), list(sides))
    axes[-1].invert_yaxis()
    return finish(figure, "What one denoiser gets wrong, scale by scale, and what it costs to move")


# ---------------------------------------------------------------- time


def times(ways: Mapping[str, tuple[Sequence[int], Sequence[float], float]], title: str) -> Figure:
    """Time against the number of pixels on log axes: (sides, seconds, fitted exponent) by name."""
    figure, ax = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for (name, (sides, seconds, slope)), colour, line in zip(ways.items(), COLOURS, LINES * 2):
        pixels = np.square(sides)
        ax.plot(pixels, seconds, "o", ms=5, color=colour)
        fitted = np.exp(np.polyval(np.polyfit(np.log(pixels), np.log(seconds), 1), np.log(pixels)))
        ax.plot(
            pixels, fitted, line, color=colour, label=f"{name}: pixels to the power {slope:.2f}"
        )
    ticks = sorted({side for sides, *_ in ways.values() for side in sides})
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="image side, pixels (log of the number of pixels)",
        ylabel="seconds an image",
    )
    ax.set_xticks([s**2 for s in ticks], [str(s) for s in ticks])
    ax.set_xticks([], minor=True)
    legend(ax)
    return finish(figure, title)


# ---------------------------------------------------------------- estimators


def fields(panels: Mapping[str, np.ndarray], title: str) -> Figure:
    """Square images (H, W) side by side, each on its own signed scale."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.75 * len(panels), 2.4), layout="constrained"
    )
    for ax, (name, image) in zip(axes, panels.items()):
        limit = np.abs(image).max()
        bare(ax, name).imshow(image, cmap=SIGNED, vmin=-limit, vmax=limit)
    return finish(figure, title)


def errors_by_size(
    sizes: Sequence[int],
    found: Mapping[str, tuple[np.ndarray, float | None]],
    title: str,
    ylabel: str,
    label: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Root mean squares with two standard errors against the sample size: (squared errors (sizes,
    repeats), the limit of n times their mean, a line)."""
    alone: Figure | None = None
    if ax is None:
        alone, ax = plt.subplots(figsize=(7, 4.2))
    for (name, (squared, limit)), colour, marker in zip(found.items(), COLOURS, "osD^v"):
        mean, error = squared.mean(axis=1), squared.std(axis=1, ddof=1) / np.sqrt(squared.shape[1])
        ax.errorbar(
            sizes,
            np.sqrt(mean),
            error / np.sqrt(mean),
            fmt=marker,
            ms=5,
            capsize=2,
            color=colour,
            label=name,
        )
        if limit is not None:
            ax.plot(sizes, np.sqrt(limit / np.array(sizes)), "-", lw=1, color=colour)
    ax.set(xscale="log", yscale="log", xlabel="images n", ylabel=ylabel)
    legend(ax)
    if alone is not None:
        return finish(alone, title, label)
    ax.set_title(title)
    return cast(Figure, ax.figure)


def efficiencies(
    ratios: np.ndarray,
    curves: Mapping[str, np.ndarray],
    measured: Mapping[str, Mapping[float, tuple[float, float]]],
    title: str,
    label: str = "",
) -> Figure:
    """Efficiency against theta_2 / theta_1, lines by the sandwich, dots measured, with two standard
    errors; the axis is linear, then log."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.3), sharey=True, layout="constrained")
    split = 0.3
    for ax, inside in zip(axes, (lambda c: c <= split, lambda c: c >= split)):
        for (name, values), colour, line, marker in zip(curves.items(), COLOURS, LINES, "osD^"):
            ax.plot(ratios[inside(ratios)], values[inside(ratios)], line, color=colour, label=name)
            aside = list(curves).index(name) - 1.5  # so that error bars can be told apart
            for ratio, (value, error) in measured.get(name, {}).items():
                if inside(ratio):
                    ax.errorbar(
                        ratio + 0.004 * aside if ax is axes[0] else ratio * 1.07**aside,
                        value,
                        2 * error,
                        fmt=marker,
                        ms=5,
                        capsize=2,
                        color=colour,
                    )
        ax.set(xlabel=THETA_RATIO, ylim=(0, 1.2))
    axes[0].set(
        ylabel="efficiency: 1 is maximum likelihood",
        title="neighbours differ (left), white noise (0)",
    )
    axes[1].set(xscale="log", title="neighbours are alike, over ever longer ways")
    axes[0].axvline(0, color="0.8", lw=1, zorder=0)
    legend(axes[0])
    return finish(figure, title, label)


def skewed_law(
    grid: np.ndarray,
    density: np.ndarray,
    posterior: np.ndarray,
    marks: Mapping[str, float],
    sizes: Sequence[int],
    found: Mapping[str, tuple[np.ndarray, float | None]],
    bias: tuple[np.ndarray, np.ndarray, float],
    label: str = "",
) -> Figure:
    """A skewed law and one posterior with its mean and median; errors against the sample size; the
    limit's bias against sigma."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 4.4), width_ratios=(1, 1.25, 1), layout="constrained"
    )
    left.plot(grid, density, color="0.5", label=r"$p(d)$")
    left.plot(grid, posterior, color=BLUE, label=r"$p(d\,|\,$noisy $d)$")
    for (name, place), colour, line in zip(marks.items(), (VERMILION, GREEN), ("-", "--")):
        left.axvline(place, color=colour, ls=line, label=f"its {name}: {place:.2f}")
    left.set(
        xlabel="$d$", ylabel="density", title="A skewed posterior", ylim=(0, 1.1 * posterior.max())
    )
    legend(left)
    errors_by_size(
        sizes,
        found,
        "One of these stops getting better",
        r"root mean square error of $\theta$",
        ax=middle,
    )
    sigma, size, slope = bias
    right.plot(sigma, size, "o", color=VERMILION, label="limit, by quadrature")
    right.plot(
        sigma,
        abs(slope) * sigma**2,
        "-",
        color=BLACK,
        lw=1,
        label=rf"{abs(slope):.3f} $\sigma^2$",
    )
    right.set(
        xscale="log",
        yscale="log",
        xlabel=NOISE,
        ylabel=r"bias of $\theta$ that stays",
        title="Bias, whatever n",
    )
    right.set_xticks(ticks := [0.05, 0.1, 0.2, 0.4, 0.8], [str(t) for t in ticks])
    right.set_xticks([], minor=True)
    legend(right)
    return finish(figure, "Where the posterior is skewed, its median is not its mean", label)


def denoising_efficiencies(
    noises: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    measured: Mapping[str, Mapping[str, tuple[float, float, float]]],
    title: str,
    label: str = "",
) -> Figure:
    """Efficiency against the noise added: one panel a way of drawing noise; lines by the sandwich,
    dots (sigma, value, error) measured, two errors."""
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4.2), layout="constrained")
    for ax, (panel, curves) in zip(axes, panels.items()):
        for (name, values), colour, line in zip(curves.items(), COLOURS, LINES):
            ax.plot(noises, values, line, color=colour, label=name)
            if name in measured.get(panel, {}):
                sigma, value, error = measured[panel][name]
                ax.errorbar(
                    sigma + 0.012 * (list(curves).index(name) - 1),
                    value,
                    2 * error,
                    fmt="o",
                    ms=5,
                    capsize=2,
                    color=colour,
                )
        ax.set(
            xlabel=NOISE,
            ylabel="efficiency: 1 is maximum likelihood",
            title=panel,
            ylim=(0, None),
        )
        legend(ax)
    return finish(figure, title, label)
