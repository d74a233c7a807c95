"""Figures of the notebook on exact likelihoods: code lengths of all images, what two slips of
accounting leave out, float errors.

`label`, the caption under a figure: which data, how many images, which seeds and how many draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.experiments.studies.accounting import ACCOUNTINGS, Ledger
from pcdm_lib.figures.style import (
    BITS,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LINES,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    bare,
    common_legend,
    end_labels,
    finish,
    legend,
    legend_beside,
)
from pcdm_lib.likelihood.evaluation import Evaluation

BPD = "bits per dimension (bpd)"
COUNT_COLOURS = dict(zip(ACCOUNTINGS, (BLUE, VERMILION, ORANGE, PURPLE)))  # by accounting
RATIO = r"noise at t = 0, $\sigma_0/\alpha_0$  [spacing of pixels]"


def source_images(images: Tensor, bits: Tensor, levels: int, title: str, label: str = "") -> Figure:
    """Code lengths (K,) in bits of all 2x2 images in order, with the cheapest, a middling and the
    most expensive drawn beside."""
    order = bits.argsort()
    shown, alike = [0, len(bits) // 2, len(bits) - 1], images[0].numel() * np.log2(levels)
    figure = plt.figure(figsize=(8.6, 3.8))
    grid = figure.add_gridspec(3, 2, width_ratios=(5, 1))
    ax = figure.add_subplot(grid[:, 0])
    ax.plot(range(1, len(bits) + 1), bits[order], color=BLUE, lw=2)
    for row, (rank, name) in enumerate(zip(shown, ("cheapest", "middle", "most expensive"))):
        ax.plot(rank + 1, bits[order[rank]], "o", color=VERMILION)
        small = bare(figure.add_subplot(grid[row, 1]), f"{name}:\n{bits[order[rank]]:.1f} bits")
        small.imshow(images[order[rank]].reshape(2, 2), cmap="gray", vmin=0, vmax=levels - 1)
    ax.axhline(alike, color="0.4", ls=":", lw=1)
    ax.text(len(bits), alike - 0.3, "all images equally likely", color=GREY, ha="right", va="top")
    ax.set(
        xlabel="image, from likely to unlikely", ylabel=r"$-\log_2 P(x)$  [bits]", ylim=(0, None)
    )
    return finish(figure, title, label)


def areas(
    gammas: np.ndarray,
    densities: Mapping[str, np.ndarray],
    sums: Mapping[str, np.ndarray],
    gamma_0: float,
    spacing: float,
    title: str,
    label: str = "",
) -> Figure:
    """Bits per dimension per unit of gamma, so that areas are bits per dimension: thin lines for
    `densities`, thick ones for `sums`; a line marks t = 0, left of which it is the decoder that
    pays. `spacing`: of pixels in the units of the noise."""
    figure, ax = plt.subplots(figsize=(8.6, 4.6))
    for (name, values), colour in zip(densities.items(), (SKY, GREEN)):
        ax.plot(gammas, values, color=colour, lw=1.2, ls="--", label=name)
    for (name, values), colour in zip(sums.items(), (BLUE, VERMILION)):
        ax.plot(gammas, values, color=colour, lw=2.2, label=name)
    dense = np.linspace(gammas[0], gammas[-1], 2000)
    first, second = (np.interp(dense, gammas, values) for values in sums.values())
    ax.fill_between(dense, first, second, where=dense <= gamma_0, color=VERMILION, alpha=0.25, lw=0)
    ax.fill_between(
        dense,
        first,
        second,
        where=(dense >= gamma_0) & (first > second),
        color=BLUE,
        alpha=0.2,
        lw=0,
    )
    ax.axvline(gamma_0, color="0.3", ls=":")
    top = 1.12 * max(first.max(), second.max())
    ax.text(gamma_0 - 0.1, 0.97 * top, "the decoder pays", ha="right", va="top", color="0.3")
    ax.text(gamma_0 + 0.1, 0.97 * top, "diffusion pays", ha="left", va="top", color="0.3")
    ax.set(
        xlabel=r"noise level $\gamma = \log \sigma^2/\alpha^2$",
        ylabel=r"bits per dimension per unit of $\gamma$",
        ylim=(0, top),
        xlim=(gammas[0], gammas[-1]),
    )
    ticks = np.array([0.02, 0.05, 0.1, 0.166, 0.5, 1, 2, 5, 20])
    upper = ax.secondary_xaxis("top")
    upper.set_xticks(2 * np.log(ticks * spacing), [f"{t:g}" for t in ticks])
    upper.set_xlabel("noise in spacings of pixels")
    legend(ax, title="one area, one code length")
    return finish(figure, title, label)


def counts(
    rows: Mapping[str, Mapping[str, float]],
    entropy: float,
    kraft: Mapping[str, float],
    title: str,
    label: str = "",
) -> Figure:
    """Counts stacked from their terms (bits per dimension), one bar each, with Kraft's sum beside;
    `entropy` as a line."""
    figure, ax = plt.subplots(figsize=(8.6, 0.62 * len(rows) + 1.9))
    terms = list(next(iter(rows.values())))
    colours = dict(zip(terms, (SKY, BLUE, ORANGE, VERMILION)))
    for y, (name, row) in enumerate(rows.items()):
        left = 0.0
        for term, value in row.items():
            ax.barh(
                y,
                value,
                0.6,
                left=left,
                color=colours[term],
                label=term if y == 0 else None,
                edgecolor="white",
                lw=0.5,
            )
            left += value
        wrong = kraft[name] > 1.01
        ax.text(
            max(left, entropy) + 0.02,
            y,
            f"{left:.3f} bpd,  Kraft's sum {kraft[name]:.3g}",
            va="center",
            color=VERMILION if wrong else "black",
            fontweight="bold" if wrong else "normal",
        )
    ax.axvline(entropy, color="black", ls="--", lw=1.2)
    ax.text(entropy, -0.55, f"entropy {entropy:.4f} ", ha="right", va="bottom", fontsize=SMALL)
    ax.set(
        yticks=range(len(rows)),
        yticklabels=list(rows),
        xlabel=BPD,
        xlim=(0, 1.55 * entropy),
        ylim=(len(rows) - 0.5, -1.0),
    )
    legend(ax)
    return finish(figure, title, label)


def estimates(
    groups: Mapping[str, Mapping[str, tuple[float, float]]],
    line: float,
    line_label: str,
    xlabel: str,
    title: str,
    label: str = "",
) -> Figure:
    """Estimates with two standard errors, one row a name, one marker a group, beside a known
    value."""
    names = list(next(iter(groups.values())))
    figure, ax = plt.subplots(figsize=(8.6, 0.55 * len(names) + 1.8))
    for k, (group, rows) in enumerate(groups.items()):
        y = np.arange(len(names)) + 0.24 * (k - (len(groups) - 1) / 2)
        values, errors = np.array([rows.get(name, (np.nan, np.nan)) for name in names]).T
        ax.errorbar(
            values, y, xerr=2 * errors, fmt=MARKERS[k], color=COLOURS[k], capsize=3, label=group
        )
    ax.axvline(line, color="black", ls="--", lw=1.2, label=line_label)
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlabel=xlabel,
    )
    legend(ax)
    return finish(figure, title, label)


def leak_curves(
    ratios: Sequence[float], ledgers: Sequence[Ledger], mark: float | None = None, label: str = ""
) -> Figure:
    """Kraft's sum and bits per dimension against the noise at t = 0, for every accounting; `mark`:
    the noise of a slider."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.9))
    for name, accounting in ACCOUNTINGS.items():
        found = [ledger.figures(accounting) for ledger in ledgers]
        style = {
            "color": COUNT_COLOURS[name],
            "lw": 2,
            "ls": "-" if name == "valid" else "--" if name == "coarse clean" else "-.",
        }
        axes[0].plot(ratios, [f.kraft for f in found], label=name, **style)
        axes[1].plot(ratios, [f.bpd for f in found], **style)
    entropy = ledgers[0].source.entropy_bits_per_dim
    axes[0].axhline(1, color="black", lw=1, ls=":")
    axes[1].axhline(entropy, color="black", lw=1, ls=":")
    axes[0].set(
        yscale="log",
        ylabel="Kraft's sum",
        title="Above 1: there is no such code. Below 1: nothing is proved",
    )
    axes[0].set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes[0].set_ylim(0.45, 10)
    axes[1].set(ylabel=BITS, title="Below the entropy: no likelihood")
    for ax in axes:
        ax.set(xscale="log", xlabel=RATIO)
        ax.set_xticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
        ax.minorticks_off()
        if mark is not None:
            ax.axvline(mark, color=GREEN, lw=2)
    end_labels(axes[1], [(entropy, f"entropy\n{entropy:.4f}", "black")])
    title = "Wrong counts can fall below the entropy, where no code exists"
    handles, labels = axes[0].get_legend_handles_labels()
    common_legend(figure, handles, labels, len(ACCOUNTINGS), label)
    return finish(figure, title)


def slider_view(
    ratios: Sequence[float], ledgers: Sequence[Ledger], ratio: float, now: Ledger
) -> Figure:
    """`leak_curves` with the slider's noise marked, and the figures there in the titles."""
    figure = leak_curves(ratios, ledgers, ratio)
    found = {name: now.figures(accounting) for name, accounting in ACCOUNTINGS.items()}
    for ax, pick, form in ((figure.axes[0], "kraft", "{:.2f}"), (figure.axes[1], "bpd", "{:.3f}")):
        for name, f in found.items():
            ax.plot(
                ratio, getattr(f, pick), "o", color=COUNT_COLOURS[name], ms=8, mec="black", zorder=5
            )
        values = ", ".join(form.format(getattr(f, pick)) for f in found.values())
        ax.set_title({"kraft": "Kraft's sum: ", "bpd": "bits per dimension: "}[pick] + values)
    return finish(
        figure, f"$\\sigma_0$ = {ratio:.3g} of a pixel's spacing (values in the legend's order)"
    )


def model_counts(counted: Mapping[str, Evaluation], title: str, label: str = "") -> Figure:
    """A trained model's images counted in every way: diffusion and decoders stacked, two standard
    errors over images and noise."""
    figure, ax = plt.subplots(figsize=(8.6, 3.9))
    top = counted["valid"].bpd
    for x, (_name, found) in enumerate(counted.items()):
        table = found.table()
        scales = [row for key, row in table.items() if key != "total"]
        parts = {
            "base: diffusion": scales[0]["diffusion"],
            "details: diffusion": sum(row["diffusion"] for row in scales[1:]),
            "prior": table["total"]["prior"],
            "decoder": table["total"]["reconstruction"],
        }
        bottom = 0.0
        for (part, value), colour in zip(parts.items(), (SKY, BLUE, "0.5", ORANGE)):
            ax.bar(
                x,
                value,
                0.6,
                bottom=bottom,
                color=colour,
                label=part if x == 0 else None,
                edgecolor="white",
                lw=0.5,
            )
            bottom += value
        ax.errorbar(x, found.bpd, 2 * found.se, color="black", capsize=4, lw=1.2)
        missing = top - found.bpd
        ax.text(
            x,
            found.bpd + 2 * found.se + 0.06,
            f"{found.bpd:.2f}" + (f"\n{missing:.2f} missing" if x else ""),
            ha="center",
            va="bottom",
            color=VERMILION if x else "black",
            fontweight="bold",
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )
    ax.axhline(top, color="black", ls="--", lw=1)
    ax.set(
        xticks=range(len(counted)),
        xticklabels=list(counted),
        ylabel=BITS,
        ylim=(0, 1.28 * top),
    )
    legend_beside(ax, reverse=True)
    return finish(figure, title, label)


def leak_law(
    ratios: np.ndarray,
    laws: Mapping[str, np.ndarray],
    measured: Mapping[tuple[int, float], tuple[float, float]],
    mark: float,
    title: str,
    label: str = "",
) -> Figure:
    """What the first slip leaves out of real images, against the noise at t = 0: lines by
    arithmetic, points measured (two standard errors), by (levels, noise)."""
    figure, ax = plt.subplots(figsize=(8.6, 4.2))
    for (name, values), colour, style in zip(laws.items(), (BLUE, GREEN, PURPLE), ("-", "--", ":")):
        ax.plot(ratios, values, style, color=colour, lw=2, label=f"by arithmetic, {name}")
    for n, marker, colour in ((1, "o", VERMILION), (2, "s", ORANGE)):
        found = [(ratio, *row) for (levels, ratio), row in measured.items() if levels == n]
        if found:
            x, values, errors = np.array(found).T
            ax.errorbar(
                x,
                values,
                2 * errors,
                fmt=marker,
                color=colour,
                mfc="none",
                mew=1.6,
                capsize=3,
                label=f"photographs, {n} level{'s' * (n > 1)}",
            )
    ax.axvline(mark, color="0.4", ls=":")
    ax.text(mark * 1.03, 0.003, r"$\gamma_{\min}$ = " + "\N{MINUS SIGN}13.3", color=GREY)
    ax.set(xscale="log", xlabel=RATIO, ylabel="bits per dimension left out")
    ax.set_xticks([0.03, 0.1, 0.2, 0.3, 0.5, 1], ["0.03", "0.1", "0.2", "0.3", "0.5", "1"])
    ax.minorticks_off()
    legend(ax)
    return finish(figure, title, label)


def _by_level(ax: Axes, levels: Sequence[int], rows: Mapping[str, Sequence[float]]) -> None:
    for (name, values), marker, colour, style in zip(rows.items(), MARKERS, COLOURS, LINES):
        ax.plot(levels, values, marker + style, color=colour, label=name, ms=6, mfc="none", mew=1.5)
    ax.set(xticks=list(levels), xlabel="levels")


def exact_levels(
    levels: Sequence[int],
    wrong: Mapping[str, Sequence[float]],
    allowed: Mapping[str, int],
    title: str,
    label: str = "",
) -> Figure:
    """Share of approximation coefficients (in %) that a float type gets wrong, by level; the last
    level that its mantissa has room for, in the legend."""
    figure, ax = plt.subplots(figsize=(8.6, 3.4))
    _by_level(
        ax,
        levels,
        {f"{name}: room up to level {allowed[name]}": values for name, values in wrong.items()},
    )
    ax.set(ylabel="coefficients that are wrong  [%]", ylim=(-4, 104))
    legend_beside(ax)
    return finish(figure, title, label)


def float_errors(
    levels: Sequence[int],
    grey: Mapping[str, Sequence[float]],
    units: Mapping[str, Sequence[float]],
    title: str,
    label: str = "",
) -> Figure:
    """Round-trip errors of float types by level: in grey levels (left), and in each type's unit of
    rounding (right), beside a square root."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.9))
    _by_level(axes[0], levels, grey)
    axes[0].axhline(0.5, color="black", ls=":", lw=1)
    axes[0].text(levels[-1], 0.6, "half a grey level", ha="right", va="bottom", fontsize=SMALL)
    axes[0].set(
        yscale="log",
        ylabel="root mean square error  [grey levels]",
        title="bfloat16 loses pixels, float64 is 13 decades below",
    )
    axes[1].plot(
        levels,
        [np.mean([v[0] for v in units.values()]) * np.sqrt(n / levels[0]) for n in levels],
        color="0.75",
        lw=6,
        zorder=0,
    )
    axes[1].text(levels[-1], 0.0, "grey band: a square root ", ha="right", va="bottom", color="0.4")
    _by_level(axes[1], levels, units)
    axes[1].set(
        ylim=(0, None),
        ylabel="the same in units of rounding",
        title="Divided by the type's own rounding: one curve",
    )
    handles, labels = axes[0].get_legend_handles_labels()
    common_legend(figure, handles, labels, len(grey), label)
    return finish(figure, title)
