"""Figures of the bits-back notebook: a stack that grows and shrinks, what its noise and its grid
cost, where a file's bits are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pcdm_lib.experiments.measured_files import Measured
from pcdm_lib.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LINES,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    finish,
    legend,
    minus,
)

PUSH, POP, NET = BLUE, VERMILION, BLACK
PARTS = {"start of the stack": ORANGE, "plain files": SKY, "container": PURPLE}
PART_COLOURS = (BLUE, *PARTS.values())
Moves = Sequence[tuple[str, float]]  # ("push" or "pop", bits on the stack after it)


def waterfall(
    ax: Axes,
    levels: Sequence[float] | np.ndarray,
    labels: Sequence[str],
    numbers: bool = True,
) -> None:
    """Moves of a stack as floating bars: red downwards, blue upwards, and a line at the end.

    Args:
        levels: heights before the first move and after each, in bits.
        labels: one a move.
        numbers: write each move's bits beside its bar.
    """
    steps = np.diff(levels)
    ax.bar(
        range(len(steps)),
        steps,
        bottom=levels[:-1],
        width=0.75,
        color=[POP if s < 0 else PUSH for s in steps],
    )
    for i, (step, low) in enumerate(zip(steps, levels)):
        ax.plot(
            [i - 0.375, min(i + 1.375, len(steps) - 0.625)],
            [levels[i + 1]] * 2,
            color="0.4",
            lw=0.8,
        )
        if numbers:
            down = step < 0
            ax.annotate(
                minus(f"{step:+.2f}"),
                (i, low + step),
                (0, -3 if down else 3),
                textcoords="offset points",
                ha="center",
                va="top" if down else "bottom",
                fontsize=SMALL,
            )
    ax.axhline(levels[0], color="0.6", lw=0.8, ls=":")
    ax.set_xticks(range(len(labels)), labels, fontsize=SMALL)


def symbol_costs(
    moves: Mapping[str, tuple[Sequence[str], Sequence[float]]],
    costs: Mapping[str, Sequence[float]],
    title: str = "",
) -> Figure:
    """One symbol through the stack, a panel for every value of its latent, and what each x costs by
    several codes.

    Args:
        moves: by panel title, labels and bits (signed) of the moves.
        costs: by name of the code, bits of x = 0, 1, ...
    """
    fig, axes = plt.subplots(
        1,
        len(moves) + 1,
        figsize=(3.2 * len(moves) + 4.6, 3.8),
        width_ratios=[1] * len(moves) + [1.4],
    )
    span = [level for _, bits in moves.values() for level in np.cumsum([0, *bits])]
    for ax, (name, (labels, bits)) in zip(axes, moves.items()):
        levels = np.cumsum([0.0, *bits])
        waterfall(ax, levels, labels)
        ax.axhline(levels[-1], color=NET, lw=1.2, ls="--")
        ax.set(title=f"{name}\nnet {levels[-1]:.3f} bits", ylim=(min(span) - 0.6, max(span) + 0.7))
    axes[0].set_ylabel("bits on the stack, from its start")
    for ax in axes[1:-1]:
        ax.sharey(axes[0])
    width = 0.8 / len(costs)
    for i, (name, bits) in enumerate(costs.items()):
        axes[-1].bar(
            np.arange(len(bits)) + (i - (len(costs) - 1) / 2) * width,
            bits,
            width,
            color=COLOURS[i],
            label=name,
        )
    axes[-1].set(
        xticks=range(len(bits)),
        xlabel="value of x",
        ylabel="bits",
        title="what each x costs",
    )
    legend(axes[-1])
    return finish(fig, title)


def growth(
    zoom: Moves, heights: Mapping[str, Sequence[float]], entropy: float, title: str = ""
) -> Figure:
    """Measured stacks: on the left the first moves of one of them, on the right the growth of
    several, with a line of `entropy` bits a symbol.

    Args:
        zoom: the moves, the first entry being the height at the start.
        heights: by name, bits after 0, 1, 2, ... symbols.
    """
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1, 1.2))
    levels = [h - zoom[0][1] for _, h in zoom]
    waterfall(axes[0], levels, [], numbers=False)
    axes[0].set_ylim(min(levels) - 1, max(levels) + 1)
    axes[0].set(
        xlabel="moves: draw z, push x, push z, and again",
        ylabel="bits on the stack, from its start",
        title="the first symbols",
    )
    legend(axes[0], [Patch(color=POP, label="drawn (popped)"), Patch(color=PUSH, label="pushed")])
    most = max(len(h) for h in heights.values()) - 1
    for (name, h), colour in zip(heights.items(), COLOURS):
        axes[1].plot(
            np.asarray(h) - h[0],
            color=colour,
            label=f"{name}: {(h[-1] - h[0]) / most:.3f} bits a symbol",
        )
    axes[1].plot(
        [0, most],
        [0, entropy * most],
        color=BLACK,
        ls=":",
        lw=2.5,
        label=f"sum of log 1/P(x): {entropy:.3f}",
    )
    axes[1].set(
        xlabel="symbols coded", ylabel="bits on the stack, from its start", title="all of them"
    )
    legend(axes[1])
    return finish(fig, title)


def merged(moves: Moves) -> list[tuple[str, float]]:
    """The same moves with pushes that follow one another taken as one."""
    found: list[tuple[str, float]] = []
    for what, height in moves:
        if found and what == "push" == found[-1][0]:
            found.pop()
        found.append((what, height))
    return found


def chain(
    moves: Moves, ends: Mapping[str, int], dims: int, first: int = 8, title: str = ""
) -> Figure:
    """The stack over the chains of all scales: the first moves large, then all of them.

    Args:
        moves: the first entry is the height at the start.
        ends: by scale, in the order of coding, how many entries of `moves` lie before its end.
        dims: pixels times channels of all tiles; heights are drawn in bits a dimension.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.3), width_ratios=(1, 1.5))
    start = moves[0][1]
    opening = merged(moves[: next(iter(ends.values()))])[: first + 1]
    labels, k = [], 0
    for what, _ in opening[1:]:
        labels.append(
            f"draw\n$z_{k}$" if what == "pop" else "push\n$x$" if k == 1 else f"push\n$z_{k - 2}$"
        )
        k += what == "pop"
    waterfall(axes[0], [(h - start) / dims for _, h in opening], labels)
    low, high = axes[0].get_ylim()
    axes[0].set(
        ylabel="bits a dimension, from the start",
        title="the first moves",
        ylim=(low - 0.1 * (high - low), high + 0.06 * (high - low)),
    )
    begin, before, offset = 1, start, 0
    for (name, end), colour in zip(ends.items(), COLOURS):
        part = merged(moves[begin:end])
        levels = (np.array([before, *(h for _, h in part)]) - start) / dims
        at = np.arange(len(levels)) + offset
        axes[1].plot(
            at,
            levels,
            color=colour,
            lw=0.9,
            label=f"{name}: {levels[-1] - levels[0]:+.2f} bits a dimension",
        )
        begin, before, offset = end, part[-1][1], at[-1]
    lowest = (min(h for _, h in moves) - start) / dims
    axes[1].axhline(0, color="0.6", lw=0.8, ls=":")
    axes[1].annotate(
        minus(f"lowest point: {lowest:.2f}"),
        (3, lowest),
        (35, 2),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "->", "color": "0.3"},
    )
    axes[1].set(
        xlabel="moves (a draw and a push for every step)",
        ylabel="bits a dimension, from the start",
        title="all moves",
    )
    legend(axes[1])
    return finish(fig, title)


def dirty_bits(
    variance: Mapping[str, Sequence[float]], net: Mapping[str, float], bound: float, title: str = ""
) -> Figure:
    """Variance of every latent's noise, both ways, and what the chain costs, beside the bound.

    Args:
        variance: by name, of z_0, z_1, ..., z_T.
        net: by the same names, bits a dimension.
        bound: the T-step bound.
    """
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.0), width_ratios=(1.5, 1))
    for (name, values), colour in zip(variance.items(), COLOURS):
        axes[0].plot(values, "o-", ms=3.5, color=colour, label=name)
    axes[0].axhline(1, color=GREY, ls=":")
    axes[0].set(
        xlabel="k",
        ylabel=r"variance of $(z_k - \alpha_k y)/\sigma_k$",
        title="the noise of the latents: it should be 1",
    )
    legend(axes[0])
    names = ["bound", *net]
    values = [bound, *net.values()]
    bars = axes[1].bar(range(len(values)), values, 0.6, color=[PALE, *COLOURS[: len(net)]])
    axes[1].bar_label(
        bars,
        [
            f"{v:.3f}\n{100 * (v / bound - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")
            if i
            else f"{v:.3f}"
            for i, v in enumerate(values)
        ],
        padding=2,
        fontsize=SMALL,
    )
    axes[1].set(
        xticks=range(len(names)),
        xticklabels=[n.replace(" ", "\n") for n in names],
        ylabel="bits a dimension",
        title="what the stack grows by",
        ylim=(0, 1.25 * max(values)),
    )
    return finish(fig, title)


def grid_costs(
    fineness: Sequence[float],
    cost: NDArray,
    start: Sequence[float],
    rounding: Sequence[float],
    rounded: NDArray,
    law: Sequence[float],
    chosen: tuple[float, float],
    title: str = "",
) -> Figure:
    """What the two roundings cost: of the latents (left and middle), and of the prediction (right).

    Args:
        cost: (fineness, seeds), per cent above the bound.
        start: bits a dimension, one a fineness.
        rounded: (rounding, seeds), bits a dimension above the bound.
        law: the same from the formula.
        chosen: the library's two settings.
    """

    def error(values: NDArray) -> NDArray:
        return values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.0))
    axes[0].errorbar(fineness, cost.mean(axis=1), error(cost), fmt="o", color=BLUE, capsize=3)
    axes[0].axhline(0, color=GREY, ls=":")
    reach = max(0.5, 1.3 * np.abs(cost).max())
    axes[0].set(
        xlabel="fineness (grid / narrower deviation)",
        ylabel="above the bound, per cent",
        title="cost of the latents' grid",
        ylim=(-reach, reach),
    )
    axes[1].plot(fineness, start, "o-", color=GREEN)
    axes[1].set(
        xlabel="fineness (grid / narrower deviation)",
        ylabel="bits a dimension",
        title="bits to start from: those of $z_0$ and $z_1$",
        ylim=(0, None),
    )
    axes[2].errorbar(
        rounding,
        rounded.mean(axis=1),
        error(rounded),
        fmt="o",
        color=BLUE,
        capsize=3,
        label="measured",
    )
    axes[2].plot(rounding, law, color=VERMILION, label="formula")
    axes[2].axhline(0, color=GREY, ls=":")
    axes[2].set_xscale("log", base=2)
    axes[2].set(
        xlabel="grid of the prediction, units of the noise",
        ylabel="bits a dimension above the bound",
        title="cost of rounding the prediction",
    )
    for ax, value in zip(axes, (chosen[0], chosen[0], chosen[1])):
        ax.axvline(value, color="0.8", lw=6, zorder=0, label="what files use")
    for ax in axes:
        legend(ax)
    return finish(fig, title)


def last_bits(
    differences: Mapping[str, NDArray],
    counts: Mapping[str, int],
    expected: Mapping[str, float],
    grid: float,
    wrong: NDArray,
    title: str = "",
) -> Figure:
    """How far predictions for one tile and for sixteen lie apart, and what one that rounds
    differently does to what follows it.

    Args:
        differences: by precision, of every prediction, in units of the noise.
        counts: by precision, rounded predictions that differ.
        expected: by precision, how many of them a file of 16 images would have.
        grid: what they are rounded to.
        wrong: decoded minus true latent, in the order of decoding, where one mean was off.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1.2, 1))
    for (name, found), colour in zip(differences.items(), COLOURS):
        size = np.abs(found)
        seen = size[size > 0]
        often = f"{expected[name]:.0f}" if expected[name] >= 1 else f"{expected[name]:.0e}"
        label = (
            f"{name}: {counts[name]} of {found.size:,} round differently\n(expected in a file "
            f"of 16 images: {often})"
        )
        axes[0].hist(
            np.log10(seen) if len(seen) else [-18.0],
            bins=np.arange(-18.5, 0.5, 0.25),
            color=colour,
            alpha=0.75,
            label=label,
        )
    axes[0].axvline(np.log10(grid), color=BLACK, lw=1.5)
    axes[0].annotate(
        "the grid",
        (np.log10(grid), axes[0].get_ylim()[1] * 0.5),
        (-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        fontsize=SMALL,
    )
    axes[0].set(
        xlabel=r"$\log_{10}$ of the difference, in units of the noise",
        ylabel="predictions that differ at all",
        title="the same network, a tile alone or among sixteen",
    )
    axes[0].set_xticks(range(-18, 1, 3))
    legend(axes[0], columns=1)
    axes[1].plot(wrong, ",", color=VERMILION)
    axes[1].plot(wrong, ".", ms=2, color=VERMILION)
    axes[1].set(
        xlabel="place in the order of decoding",
        ylabel="decoded minus true latent, grid points",
        title=f"one mean off by the smallest amount: {int((wrong != 0).sum())} of {wrong.size} "
        f"wrong",
    )
    return finish(fig, title)


def file_parts(
    files: Mapping[str, Mapping[str, float]],
    raw: float,
    scales: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Files as stacked bars, part by part.

    Args:
        files: by name, bits of each part.
        raw: bits of the pixels.
        scales: the parts that the model coded, in the order of their colours.
    """
    colours = dict(zip(scales, COLOURS)) | PARTS
    fig, ax = plt.subplots(figsize=(9.5, 0.75 * len(files) + 1.7))
    for row, (_name, parts) in enumerate(files.items()):
        left = 0.0
        for part, bits in parts.items():
            ax.barh(row, bits / 8, 0.6, left=left, color=colours[part])
            if bits > 0.05 * raw:
                ax.text(
                    left + bits / 16,
                    row,
                    f"{bits / 8:.0f}",
                    ha="center",
                    va="center",
                    color="white" if part in scales else "black",
                    fontsize=SMALL,
                )
            left += bits / 8
        ax.text(
            left + raw / 8 * 0.01,
            row,
            f"{left:.0f}",
            va="center",
            fontweight="bold",
            fontsize=SMALL,
            bbox={"fc": "white", "ec": "none", "pad": 1},
        )
    ax.axvline(raw / 8, color=GREY, ls=":", zorder=0)
    ax.annotate(
        "pixels",
        (raw / 8, -0.5),
        (-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=SMALL,
    )
    present = {part for parts in files.values() for part in parts}
    patches = [Patch(color=c, label=p) for p, c in colours.items() if p in present]
    ax.set(
        yticks=range(len(files)),
        yticklabels=list(files),
        xlabel="bytes",
        xlim=(0, 1.08 * raw / 8),
        ylim=(len(files) - 0.4, -0.7),
    )
    legend(ax, patches)
    return finish(fig, title)


def bits_by_step(steps: Mapping[str, NDArray], title: str = "") -> Figure:
    """What each time step cost: a panel a scale, (T + 2,) bits a dimension of the image each: the
    integers, steps 1..T, the end."""
    fig, axes = plt.subplots(
        1, len(steps), figsize=(4.8 * len(steps), 3.3), sharey=True, squeeze=False
    )
    for ax, (name, row), colour in zip(axes[0], steps.items(), COLOURS):
        ax.bar(range(1, len(row) - 1), row[1:-1], 0.85, color=colour)
        ax.set(
            xlabel=f"step k of {len(row) - 2}: from clean to noise",
            title=f"{name}: {row.sum():.2f} bits a dimension\n(the integers given $z_0$: "
            f"{abs(row[0]):.3f}, the end: {abs(row[-1]):.3f})",
        )
    axes[0, 0].set_ylabel("bits a dimension")
    return finish(fig, title)


def overhead(
    images: Sequence[int],
    share: Mapping[str, Sequence[float]],
    measured: tuple[int, float],
    limit: float,
    enough: int,
    title: str = "",
) -> Figure:
    """What is not image, in per cent of what is, against the number of images in a file.

    Args:
        share: by name, per cent for each number; drawn stacked.
        measured: a file that was written.
        limit: a line, per cent, and
        enough: the number of images from which the total stays below it.
    """
    fig, ax = plt.subplots(figsize=(8, 4.0))
    ax.stackplot(
        images, list(share.values()), labels=list(share), colors=[PARTS[name] for name in share]
    )
    ax.plot(
        *measured,
        "o",
        color=BLACK,
        label=f"the file above, {measured[0]} images: {measured[1]:.1f} %",
    )
    ax.axhline(limit, color=BLACK, ls="--", lw=1)
    ax.axvline(enough, color=BLACK, ls=":", lw=1)
    ax.annotate(
        f"{limit:g} % from {enough} images",
        (enough, limit),
        (6, 6),
        textcoords="offset points",
        fontsize=SMALL,
    )
    ax.set(
        xscale="log",
        xlabel="images in the file",
        ylabel="per cent of the net bits",
        xlim=(images[0], images[-1]),
        ylim=(0, 1.6 * measured[1]),
    )
    legend(ax)
    return finish(fig, title)


def file_sizes(measured: Sequence[Measured], label: str) -> Figure:
    """Bound, net and file of every model and T, bits per dimension; error bars are the standard
    error of net minus bound."""
    names = [f"{m.model}\nT = {m.settings.steps}, {m.statistics.images} images" for m in measured]
    figure, ax = plt.subplots(figsize=(8.5, 0.75 * len(names) + 1.9), layout="constrained")
    rows = np.arange(len(names))[::-1]
    ax.plot(
        [np.nan if m.bound is None else m.bound.bpd for m in measured],
        rows,
        "o",
        mfc="none",
        mec=VERMILION,
        ms=11,
        mew=2,
        label="T-step bound",
    )
    ax.errorbar(
        [m.statistics.net_bpd for m in measured],
        rows,
        xerr=[m.excess[1] for m in measured],
        fmt=".",
        color=BLUE,
        capsize=3,
        label="net bits on the stack",
    )
    ax.plot(
        [m.file_bpd for m in measured],
        rows,
        "|",
        color="black",
        ms=16,
        mew=2,
        label="file, everything counted",
    )
    ax.set_yticks(rows, names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.set_xlabel("bits per dimension")
    legend(ax)
    return finish(figure, "The stack grows by the bound, and the file is little more", label)


def file_contents(measured: Sequence[Measured], label: str) -> Figure:
    """Left: the bytes of each file by what they carry. Right: net bits of each scale against the
    step of its chain."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(1, 1.3)
    )
    kinds = ("by the model", "start of the stack", "plain files", "container")
    for row, m in enumerate(measured):
        values = (
            np.array(
                [
                    m.statistics.model_bits,
                    m.statistics.start_bits,
                    m.statistics.plain_bits,
                    m.statistics.container_bits,
                ]
            )
            / m.statistics.dims
        )
        begins = np.concatenate([[0], values.cumsum()[:-1]])
        left.barh(row, values, left=begins, color=PART_COLOURS, edgecolor="white")
    left.set_yticks(range(len(measured)), [f"{m.model}\nT = {m.settings.steps}" for m in measured])
    left.set_xlabel("bits per dimension of the file")
    left.set_title("What the bytes carry")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in PART_COLOURS]
    legend(left, handles, kinds)
    for number, m in enumerate(measured):
        for style, (scale, bits) in zip(LINES, m.statistics.steps.items()):
            right.plot(
                np.arange(1, len(bits) - 1) / m.settings.steps,
                np.cumsum(bits)[1:-1] / m.statistics.model_dims,
                style,
                color=COLOURS[number % len(COLOURS)],
                label=f"{m.model}, {scale}",
            )
    right.set_xlabel("time step k / T of the latent that was just coded")
    right.set_ylabel("bits per dimension so far")
    right.set_title("Bits along the chain: each latent less the next one's noise")
    if right.lines:  # there is nothing to see where no image was the model's
        legend(right)
    return finish(figure, "Where the bytes of each file go", label)
