"""Figures of the notebook on other domains: noise beside its law, bits by domain, what the coarser
image is worth, where energy lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.data.domains import HIGH_DB, LOW_DB, SAMPLE_RATE
from pcdm_lib.figures.style import (
    BITS,
    BLUE,
    COLOURS,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    apart,
    bare,
    finish,
    legend,
    legend_beside,
    minus,
    picture,
)
from pcdm_lib.likelihood.evaluation import Evaluation

BANDS = {"p": "p: across rows", "q": "q: across columns", "r": "r: diagonal"}
Figures = Mapping[str, tuple[float, float]]  # a value and its standard error, by name


def noise_law(
    images: np.ndarray, pmf: np.ndarray, entropy: float, bits: Figures, title: str, label: str
) -> Figure:
    """Grey levels of noise spectrograms beside their law (left); code lengths of them, with two
    standard errors, beside the entropy (right)."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.9), width_ratios=(1.1, 1))
    share = np.bincount(images.ravel(), minlength=256) / images.size
    shown = np.flatnonzero(pmf > 1e-7)
    axes[0].bar(shown, 100 * share[shown], 1.0, color=SKY, label=f"{images.size} pixels")
    axes[0].plot(shown, 100 * pmf[shown], color=VERMILION, lw=1.5, label="the law")
    axes[0].set(
        xlabel=minus(f"grey level ({LOW_DB:g} to {HIGH_DB:g} dB)"),
        ylabel="share of pixels  [%]",
        title="Every pixel is an independent draw",
    )
    legend(axes[0])
    for y, ((value, error), colour) in enumerate(zip(bits.values(), COLOURS)):
        axes[1].errorbar(
            value, y, xerr=2 * error, fmt=MARKERS[y % len(MARKERS)], color=colour, capsize=3
        )
        axes[1].text(value + 2 * error + 0.04, y, f"{value:.2f}", va="center", fontsize=SMALL)
    axes[1].axvspan(0, entropy, color="0.9")
    axes[1].axvline(entropy, color="black", ls="--", lw=1.2)
    low, high = entropy - 0.35, max(value for value, _ in bits.values()) + 0.35
    axes[1].text(
        entropy - 0.03,
        len(bits) - 0.45,
        f"entropy {entropy:.3f}",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        rotation=90,
    )
    axes[1].set(
        yticks=range(len(bits)),
        yticklabels=list(bits),
        ylim=(len(bits) - 0.4, -0.6),
        xlim=(low, high),
        xlabel=BITS,
        title="No code is shorter than the entropy",
    )
    return finish(figure, title, label)


def domain_bits(
    results: Mapping[str, Evaluation], beside: Mapping[str, Figures], title: str, label: str
) -> Figure:
    """Bounds stacked by scale, one bar a domain, with two standard errors; beside each, other codes
    of the same images as marks."""
    figure, ax = plt.subplots(figsize=(8.8, 4.1))
    top = max(value for row in beside.values() for value, _ in row.values())
    for x, (domain, result) in enumerate(results.items()):
        bottom = 0.0
        for (scale, row), colour in zip(list(result.table().items())[:-1], (SKY, BLUE)):
            ax.bar(
                x,
                row["total"],
                0.42,
                bottom=bottom,
                color=colour,
                label=f"model: {scale}" if x == 0 else None,
            )
            ax.text(
                x,
                bottom + row["total"] / 2,
                f"{row['total']:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="black" if colour == SKY else "white",
            )
            bottom += row["total"]
        ax.errorbar(x, bottom, 2 * result.se, color="black", capsize=4, lw=1.2)
        ax.text(
            x,
            bottom + 2 * result.se + 0.08,
            f"{bottom:.2f}",
            ha="center",
            va="bottom",
            fontweight="bold",
        )
        places = apart([value for value, _ in beside[domain].values()], 0.06 * top)
        for k, ((name, (value, error)), marker, colour) in enumerate(
            zip(beside[domain].items(), MARKERS, (ORANGE, VERMILION, GREEN))
        ):
            ax.errorbar(
                x + 0.27 + 0.05 * k,
                value,
                2 * error,
                fmt=marker,
                color=colour,
                capsize=3,
                label=name if x == 0 else None,
            )
            ax.text(x + 0.43, places[k], f"{value:.2f}", va="center", fontsize=SMALL, color=colour)
    ax.set(
        xticks=range(len(results)),
        xticklabels=[f"{domain}\n{len(r.parts)} held-out images" for domain, r in results.items()],
        ylabel=BITS,
        ylim=(0, 1.1 * top),
        xlim=(-0.5, len(results) - 0.3),
    )
    legend_beside(ax)
    return finish(figure, title, label)


def coarse_worth(
    rows: Mapping[str, Mapping[str, tuple[float, float]]],
    differences: Mapping[str, Mapping[str, tuple[float, float]]],
    title: str,
    label: str,
) -> Figure:
    """Bits of the fine scale by domain and by what its network is shown (left), and what they are
    more than with the own image (right), with two standard errors. `rows` and `differences`:
    {domain: {what is shown: (value, standard error)}}."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.2), width_ratios=(1.7, 1))
    kinds = list(next(iter(rows.values())))
    for ax, table in zip(axes, (rows, differences)):
        for k, kind in enumerate(kinds):
            if kind not in next(iter(table.values())):
                continue
            x = np.arange(len(table)) + 0.25 * (k - (len(kinds) - 1) / 2)
            values, errors = np.array([row[kind] for row in table.values()]).T
            ax.bar(
                x,
                values,
                0.22,
                yerr=2 * errors,
                color=(BLUE, ORANGE, VERMILION)[k],
                capsize=3,
                label=kind,
                error_kw={"lw": 1},
            )
            for place, value, error in zip(x, values, errors):
                ax.text(
                    place,
                    value + 2 * error,
                    f"{value:.2f}",
                    ha="center",
                    va="bottom",
                    fontsize=SMALL,
                )
        ax.set(xticks=range(len(table)), xticklabels=list(table), ylabel=BITS)
        ax.margins(y=0.12)
    axes[0].set_title("The fine scale's bits")
    axes[1].set_title("More than with the own coarse image")
    legend(axes[0], title="coarse image shown to the network")
    return finish(figure, title, label)


def band_shares(
    energy: Mapping[str, Mapping[str, float]], colours: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Share of the energy about the mean in each detail band, by source (left); share of each
    principal colour axis of colour images (right), both in %."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.0), width_ratios=(1.9, 1))
    for k, ((band, name), colour) in enumerate(zip(BANDS.items(), (BLUE, ORANGE, GREEN))):
        x = np.arange(len(energy)) + 0.26 * (k - 1)
        values = [row[band] for row in energy.values()]
        axes[0].bar(x, values, 0.24, color=colour, label=name)
        for place, value in zip(x, values):
            axes[0].text(
                place, value * 1.05, f"{value:.1f}", ha="center", va="bottom", fontsize=SMALL
            )
    axes[0].axhline(25, color="black", ls=":", lw=1)
    axes[0].text(-0.45, 26, "white noise: a quarter each", fontsize=SMALL, va="bottom")
    axes[0].set(
        yscale="log",
        ylim=(0.1, 200),
        xticks=range(len(energy)),
        xticklabels=list(energy),
        ylabel="energy of all four bands  [%]",
        title="Detail bands of one level",
    )
    for k, ((name, shares), colour) in enumerate(zip(colours.items(), (PURPLE, VERMILION))):
        x = np.arange(1, 4) + 0.36 * (k - 0.5)
        axes[1].bar(x, shares, 0.34, color=colour, label=name)
        for place, share in zip(x, shares):
            axes[1].text(
                place, share * 1.08, f"{share:.2g}", ha="center", va="bottom", fontsize=SMALL
            )
    axes[1].set(
        yscale="log",
        ylim=(0.03, 700),
        xticks=(1, 2, 3),
        xlabel="principal axis",
        ylabel="variance of colour  [%]",
        title="Colours: how many directions",
    )
    for ax, ticks in zip(axes, ([0.1, 1, 10], [0.1, 1, 10, 100])):
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    legend(axes[0])
    legend(axes[1])
    return finish(figure, title)


def aliased_tone(fine: Tensor, coarse: Tensor, pitch: float, title: str) -> Figure:
    """Spectrogram of a tone (1, n, n) uint8, its coarse image (1, n/2, n/2) in 0..1, and a column
    of both against frequency in Hz."""
    n = fine.shape[-1]
    width = SAMPLE_RATE / (2 * n)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.6), width_ratios=(1, 1, 2))
    for ax, image, name in ((axes[0], fine, "the tone"), (axes[1], coarse, "its coarse image")):
        bare(ax, name).imshow(picture(image), vmin=0, vmax=1)
    axes[0].set(xlabel="time", ylabel="frequency")
    frequency = width * np.arange(1, n + 1)
    column = fine[0, :, n // 2].numpy()[::-1].astype(float)
    axes[2].plot(
        frequency / 1000,
        column,
        "o-",
        color=BLUE,
        ms=4,
        label=f"fine: {n} rows, a peak every {pitch:g} Hz",
    )
    rough = 255 * coarse[0, :, n // 4].numpy()[::-1].astype(float)
    axes[2].step(
        np.append(frequency[::2], frequency[-1] + width) / 1000 - width / 2000,
        np.append(rough, rough[-1]),
        where="post",
        color=VERMILION,
        lw=2,
        label=f"coarse: {n // 2} rows, a dip every {2 * pitch:g} Hz",
    )
    axes[2].set(
        xlabel="frequency  [kHz]",
        ylabel="grey level",
        ylim=(min(column) - 10, max(column) + 15),
        title="One column",
    )
    legend(axes[2], columns=1)
    return finish(figure, title)
