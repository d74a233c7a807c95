"""Figures of out-of-distribution detection: code lengths of the data and of outliers, and how well
they are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from pcdm_lib.figures.style import (
    BITS,
    BLUE,
    COLOURS,
    MARKERS,
    SMALL,
    common_legend,
    finish,
)
from pcdm_lib.likelihood.typicality import TOTAL, Scores


def code_length_histograms(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    name: str,
    label: str = "",
    wide: float = 1.0,
) -> Figure:
    """Histograms of the code lengths, from all their draws: one row a set, one panel for the total
    and one a scale, with the mean of the reference as a line and the middle 95 % of the data
    shaded. Every row has its own height.

    Args:
        name: what the data is called.
        wide: the axis reaches so many times the width of the data's range to either side; what lies
            beyond is counted in an arrow at the edge.
    """
    sets, columns = {name: inside, **outliers}, [inside.names[-1], *inside.names[:-1]]
    figure, axes = plt.subplots(
        len(sets),
        len(columns),
        figsize=(max(3.2 * len(columns) + 1.4, 7.5), 1.05 * len(sets) + 1.5),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    for k, column in enumerate(columns):
        place = inside.names.index(column)
        data, centre = inside.columns[:, place], reference.columns[:, place].mean()
        low, high = np.quantile(data, [0.025, 0.975])
        every = np.concatenate([s.columns[:, place] for s in sets.values()])
        reach = wide * np.ptp(data)
        bins = np.linspace(
            max(0.0, every.min() - 0.2, data.min() - reach),
            min(every.max() + 0.2, data.max() + reach),
            60,
        )
        for ax, colour, (group, scores) in zip(axes[:, k], COLOURS, sets.items()):
            values = scores.columns[:, place]
            ax.hist(values, bins=bins, color=colour)
            ax.axvspan(low, high, color=BLUE, alpha=0.12, lw=0, zorder=0)
            ax.axvline(centre, ymax=0.72, color="0.3", ls="--", lw=1)
            tallest = max(np.histogram(values, bins)[0].max(), 1)
            # the upper part is for the numbers
            ax.set(yticks=[], xlim=(bins[0], bins[-1]), ylim=(0, 1.4 * tallest))
            ax.spines["left"].set_visible(False)
            _beyond(
                ax,
                int((values < bins[0]).sum()),
                int((values > bins[-1]).sum()),
                float(np.median(values)),
            )
            if k == 0:
                ax.set_ylabel(
                    f"{group}\n({len(scores)} images)",
                    rotation=0,
                    ha="right",
                    va="center",
                    labelpad=6,
                )
        axes[0, k].set_title("all scales together" if column == TOTAL else f"scale {column}")
        axes[-1, k].set_xlabel(BITS)
    return finish(
        figure,
        "Too few bits are as unusual as too many",
        f"dashed: mean of the reference; shaded: 95 % of {name}; {label}",
    )


def _beyond(ax: Axes, left: int, right: int, median: float) -> None:
    """How many values lie beyond the axis on either side; the words stand once, on one line."""
    words = f" off the axis, median {median:.1f}"
    sides = {
        "left": (left, 0.02, f"\N{LEFTWARDS ARROW} {left}" + words * (not right)),
        "right": (right, 0.98, f"{right}{words} \N{RIGHTWARDS ARROW}"),
    }
    for side, (count, x, text) in sides.items():
        if count:
            ax.text(x, 0.97, text, transform=ax.transAxes, ha=side, va="top", fontsize=SMALL)


def auroc_by_scale(
    rows: Sequence[Mapping[str, Any]], draws: int | None = None, batch: int = 1, label: str = ""
) -> Figure:
    """AUROC with its interval for every statistic, one panel a set of outliers: which scale sees
    the difference. `rows` as `typicality.detect` gives them.

    Args:
        draws: N, the largest where it is None.
        batch: M.
    """
    draws = max((row["N"] for row in rows), default=None) if draws is None else draws
    chosen = _chosen(rows, N=draws, M=batch)
    sets = list(dict.fromkeys(row["set"] for row in chosen))
    kinds = list(dict.fromkeys((row["statistic"], row["scale"]) for row in chosen))
    figure, axes = plt.subplots(
        1,
        len(sets),
        figsize=(2.4 * len(sets) + 2.2, 0.33 * len(kinds) + 1.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = dict(zip(dict.fromkeys(k for k, _ in kinds), (COLOURS[1], COLOURS[0])))
    for ax, name in zip(axes[0], sets):
        for row in _chosen(chosen, set=name):
            y, colour = kinds.index((row["statistic"], row["scale"])), colours[row["statistic"]]
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=2.5)
            ax.plot(row["auroc"], y, "o", color=colour, ms=6)
        ax.axvline(0.5, color="0.5", ls=":", lw=1)
        ax.set(xlim=(-0.04, 1.04), xlabel="AUROC", title=name, xticks=[0, 0.5, 1])
    axes[0, 0].set_yticks(
        range(len(kinds)), [f"{statistic}, {scale}" for statistic, scale in kinds]
    )
    axes[0, 0].invert_yaxis()
    title = (
        f"Which scale sees the difference? Left of 0.5, outliers pass for more typical than the "
        f"data (M = {batch}, N = {draws})"
    )
    return finish(figure, title, label)


def auroc_by_draws(
    models: Mapping[str, Sequence[Mapping[str, Any]]],
    scale: str = TOTAL,
    batch: int = 1,
    label: str = "",
) -> Figure:
    """AUROC of the typicality against N, the draws of the bound an image, with its interval: one
    panel a model, one curve a set of outliers.

    Args:
        models: rows of each model by its name, as `typicality.detect` gives them.
        scale: as in the rows.
        batch: M.
    """
    found = {
        name: _chosen(rows, statistic="typicality", scale=scale, M=batch)
        for name, rows in models.items()
    }
    across = min(3, len(found))
    down = -(-len(found) // across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(max(3.4 * across, 6.0), 2.5 * down + 1.1),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    sets = list(dict.fromkeys(row["set"] for rows in found.values() for row in rows))
    ticks = sorted({row["N"] for rows in found.values() for row in rows})
    for ax in axes.flat[len(found) :]:
        ax.remove()
    for k, (ax, (name, rows)) in enumerate(zip(axes.flat, found.items())):
        for place, group in enumerate(sets):
            mine = sorted(_chosen(rows, set=group), key=lambda row: row["N"])
            # beside each other, not on top
            x = np.array([row["N"] for row in mine]) * 1.09 ** (place - (len(sets) - 1) / 2)
            value, low, high = (
                np.array([row[c] for row in mine]) for c in ("auroc", "low", "high")
            )
            # the value of all images may lie a rounding outside
            sides = np.maximum([value - low, high - value], 0)
            ax.plot(x, value, color=COLOURS[place + 1], lw=1.2)
            ax.errorbar(
                x,
                value,
                yerr=sides,
                fmt=MARKERS[place],
                color=COLOURS[place + 1],
                ms=5,
                capsize=3,
                label=group,
            )
        ax.axhline(0.5, color="0.5", ls=":", lw=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.set_title(name)
        if k + across >= len(found):
            ax.set_xlabel("draws of the bound an image, N")
            ax.tick_params(labelbottom=True)
        if k % across == 0:
            ax.set_ylabel("AUROC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    where = "all scales together" if scale == TOTAL else f"scale {scale}"
    common_legend(figure, handles, labels, len(labels), label)
    title = f"What more draws an image are worth (typicality, {where}, M = {batch})"
    return finish(figure, title)


def _chosen(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    if not found:
        asked = " and ".join(f"{k}={v!r}" for k, v in wanted.items())
        have = "; ".join(
            f"{k}: {', '.join(map(str, dict.fromkeys(row[k] for row in rows)))}" for k in wanted
        )
        raise ValueError(f"no rows with {asked}: choose of those that `detect` gave ({have})")
    return found
