"""Figures of the quickstart: what a bit is, where an image's bits lie, what files take, what is
unusual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pcdm_lib.figures.style import (
    BITS,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    HEAT,
    PALE,
    SKY,
    VERMILION,
    bare,
    common_legend,
    finish,
    legend_beside,
    picture,
)
from pcdm_lib.likelihood.information import InformationMap


def symbol_probabilities(
    values: Sequence[int], probabilities: Mapping[str, np.ndarray], truth: int, title: str = ""
) -> Figure:
    """Probabilities over the same integers, one panel each; the bar that happened in red, with what
    it costs in bits."""
    figure, axes = plt.subplots(
        1,
        len(probabilities),
        figsize=(3.3 * len(probabilities), 2.9),
        sharey=True,
        layout="constrained",
    )
    place = list(values).index(truth)
    for ax, (name, p) in zip(axes, probabilities.items()):
        bars = ax.bar(values, p, width=0.8 * (values[1] - values[0]), color=SKY)
        bars[place].set_color(VERMILION)
        ax.set(
            xlabel="value of the coefficient",
            title=f"{name}\nthe one that came costs {-np.log2(p[place]):.1f} bits",
        )
    axes[0].set_ylabel("probability")
    return finish(figure, title)


def bit_map(
    image: Tensor, found: InformationMap, title: str, index: int = 0, label: str = ""
) -> Figure:
    """One image (C, H, W) beside its map of bits: one panel a scale, then all scales, on a common
    colour scale, and the bits of every band."""
    maps = found.pixel_bits()[index].numpy()
    bits = found.bits()[index]
    single = len(found.specs) == 1
    panels = [
        (f"{spec.name}: {share:.0f} bits", m) for spec, share, m in zip(found.specs, bits, maps)
    ]
    if not single:
        panels.append((f"all scales: {bits.sum():.0f} bits", maps.sum(axis=0)))
    figure, axes = plt.subplots(
        1, len(panels) + 2, figsize=(2.4 * (len(panels) + 2), 2.9), layout="constrained"
    )
    bare(axes[0], "the image").imshow(picture(image))
    top = np.quantile(panels[-1][1], 0.99)
    for ax, (name, m) in zip(axes[1:-1], panels):
        drawn = bare(ax, name).imshow(m, cmap=HEAT, vmin=0, vmax=top)
    figure.colorbar(drawn, ax=axes[1:-1], label="bits a pixel", shrink=0.8, extend="max")
    bands = {name: float(v[index]) for name, v in found.band_bits().items()}
    axes[-1].barh(
        range(len(bands)),
        list(bands.values()),
        color=[
            COLOURS[next(i for i, s in enumerate(found.specs) if name.split()[0] == s.name)]
            for name in bands
        ],
    )
    axes[-1].set(
        yticks=range(len(bands)), yticklabels=list(bands), xlabel="bits", title="band by band"
    )
    axes[-1].invert_yaxis()
    return finish(figure, title, label)


def message_sizes(
    bits: Mapping[str, float], codecs: Mapping[str, float], raw: float, title: str, label: str = ""
) -> Figure:
    """Bytes of one image: the model's message stacked by scale, beside files and the raw pixels.
    All arguments in bits."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    bottom = 0.0
    for colour, (scale, value) in zip(COLOURS, bits.items()):
        axes.bar(
            0, value / 8, 0.6, bottom=bottom, color=colour, label=f"{scale}: {value / 8:.0f} bytes"
        )
        bottom += value / 8
    heights = [bottom, *(v / 8 for v in codecs.values()), raw / 8]
    for x, height in enumerate(heights):
        if x:
            axes.bar(x, height, 0.6, color=PALE)
        axes.text(
            x,
            height + raw / 8 * 0.015,
            f"{height:.0f}",
            ha="center",
            va="bottom",
            fontweight="bold",
        )
    names = ["this model\n(code length)", *(f"{name}\n(file)" for name in codecs), "pixels\n(raw)"]
    axes.set(
        xticks=range(len(names)),
        xticklabels=names,
        ylabel="bytes",
        ylim=(0, 1.1 * max(heights)),
    )
    legend_beside(axes, reverse=True)
    return finish(figure, title, label)


def bit_maps(images: Tensor, found: InformationMap, title: str, label: str = "") -> Figure:
    """Images (N, C, H, W) above their maps of bits, all scales together, on a common colour
    scale."""
    maps, bits = found.pixel_bits().sum(dim=1).numpy(), found.bits().sum(dim=1)
    figure, axes = plt.subplots(
        2, len(images), figsize=(1.35 * len(images) + 1, 3.4), squeeze=False, layout="constrained"
    )
    top = np.quantile(maps, 0.99)
    for column, image, m, total in zip(axes.T, images, maps, bits):
        bare(column[0], f"{total / image.numel():.2f} bits/dim").imshow(picture(image))
        drawn = bare(column[1]).imshow(m, cmap=HEAT, vmin=0, vmax=top)
    figure.colorbar(drawn, ax=axes[1, :], label="bits a pixel", shrink=0.9, extend="max")
    return finish(figure, title, label)


def unusual_images(
    groups: Mapping[str, np.ndarray], examples: Mapping[str, Tensor], marked: float, label: str = ""
) -> Figure:
    """Histograms of bits per dimension, one group of images below the other with an example of
    each; a line marks the reader's image, a shaded range the first group, with which the others are
    compared."""
    figure, axes = plt.subplots(
        len(groups),
        2,
        figsize=(9.5, 0.8 * len(groups) + 1.3),
        width_ratios=(1, 12),
        layout="constrained",
        squeeze=False,
    )
    every = np.concatenate(list(groups.values()))
    bins = np.linspace(min(0.0, every.min()), max(8.5, every.max() + 0.1), 80)
    first = next(iter(groups.values()))
    for (left, ax), (name, values), colour in zip(
        axes, groups.items(), [BLUE] + [GREEN] * len(groups)
    ):
        bare(left).imshow(picture(examples[name]))
        ax.hist(values, bins=bins, color=colour)
        ax.axvspan(first.min(), first.max(), color=BLUE, alpha=0.1, lw=0)
        ax.axvline(marked, color=VERMILION, lw=2, label=f"your image: {marked:.2f}")
        ax.axvline(8, color=GREY, ls=":", label="raw pixels: 8")
        ax.set(yticks=[], xlim=(bins[0], bins[-1]))
        ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=4)
        ax.spines["left"].set_visible(False)
        if ax is not axes[-1, 1]:
            ax.set_xticklabels([])
    axes[-1, 1].set_xlabel(BITS)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    common_legend(figure, handles, labels, 2, label)
    return finish(figure, "What images cost: yours beside some that are unusual")
