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

from pcdm_lib.figures.style import BITS, BLUE, COLOURS, SMALL, finish, legend
from pcdm_lib.likelihood.typicality import TOTAL, Scores


def code_length_histograms(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    name: str,
    label: str = "",
    wide: float = 1.0,
) -> Figure:
    """Histograms of the code lengths, one row a set, one panel for the total and one a scale, with
    the mean of the reference as a line and the middle 95 % of the data shaded. Every row has its
    own height.

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
    rows: Sequence[Mapping[str, Any]], batch: int = 1, size: int | None = None, label: str = ""
) -> Figure:
    """AUROC with its interval for every statistic, one panel a set of outliers: which scale sees
    the difference. `rows` as `ood.detect` gives them.

    Args:
        batch: M.
        size: N, the largest where it is None. The interval is the one over the choice of the
            reference where the rows have it.
    """
    size = max(_values(rows, "N"), default=None) if size is None else size
    rows = [row for row in rows if row["M"] == batch and row["N"] in (None, size)]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    kinds = list(dict.fromkeys((row["statistic"], row["scale"]) for row in rows))
    if not rows:
        raise ValueError(
            f"no rows with M={batch} and N={size}: choose an M and an N that `detect` was given"
        )
    figure, axes = plt.subplots(
        1,
        len(sets),
        figsize=(2.6 * len(sets) + 2.2, 0.33 * len(kinds) + 1.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = dict(zip(dict.fromkeys(k for k, _ in kinds), (COLOURS[1], COLOURS[0])))
    for ax, name in zip(axes[0], sets):
        for row in (r for r in rows if r["set"] == name):
            y, (value, low, high) = kinds.index((row["statistic"], row["scale"])), _interval(row)
            ax.plot([low, high], [y, y], color=colours[row["statistic"]], lw=2.5)
            ax.plot(value, y, "o", color=colours[row["statistic"]], ms=6)
        ax.axvline(0.5, color="0.5", ls=":", lw=1)
        ax.set(xlim=(-0.04, 1.04), xlabel="AUROC with its interval", title=name)
    axes[0, 0].set_yticks(
        range(len(kinds)), [f"{statistic}, {scale}" for statistic, scale in kinds]
    )
    axes[0, 0].invert_yaxis()
    title = (
        f"Which scale sees the difference? Left of 0.5, outliers pass for more typical than the "
        f"data (M = {batch}, N = {size})"
    )
    return finish(figure, title, label)


def auroc_by_setting(
    rows: Sequence[Mapping[str, Any]],
    scale: str = TOTAL,
    batch: int = 1,
    size: int | None = None,
    label: str = "",
) -> Figure:
    """AUROC of the typicality against M, at one N, and against N, at one M, each with its interval;
    one curve a set of outliers.

    Args:
        scale: as in `rows`, which `ood.detect` gives.
        batch: M of the right panel.
        size: N of the left one, the largest where it is None.
    """
    rows = [row for row in rows if row["statistic"] == "typicality" and row["scale"] == scale]
    if not rows:
        raise ValueError(
            f"no rows of the typicality on scale {scale!r}: choose one of those that `detect` gave"
        )
    size = max(_values(rows, "N")) if size is None else size
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    panels = (
        (
            "M",
            "images in a batch, M",
            [r for r in rows if r["N"] == size],
            f"larger batches (N = {size})",
        ),
        (
            "N",
            "reference images, N",
            [r for r in rows if r["M"] == batch],
            f"more reference images (M = {batch})",
        ),
    )
    for ax, (key, xlabel, chosen, title) in zip(axes, panels):
        names = list(dict.fromkeys(row["set"] for row in chosen))
        for k, (name, colour) in enumerate(zip(names, COLOURS[1:])):
            mine = sorted((row for row in chosen if row["set"] == name), key=lambda row: row[key])
            # beside each other, not on top
            x = np.array([row[key] for row in mine]) * 1.04 ** (k - (len(names) - 1) / 2)
            value, low, high = np.array([_interval(row) for row in mine]).T
            ax.plot(x, value, color=colour, lw=1.2)
            ax.errorbar(
                x,
                value,
                yerr=np.abs([value - low, high - value]),
                fmt="o",
                color=colour,
                ms=5,
                capsize=3,
                label=name,
            )
        ticks = _values(chosen, key)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.axhline(0.5, color="0.5", ls=":", lw=1)
        ax.set(xlabel=xlabel, title=title)
    axes[0].set_ylabel("AUROC with its interval")
    legend(axes[0])
    title = (
        f"What larger batches and more reference images are worth (typicality, "
        f"{'all scales' if scale == TOTAL else scale})"
    )
    return finish(figure, title, label)


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    return sorted({row[key] for row in rows if row[key] is not None})


def _interval(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value, low and high: with the choice of the reference where the row has that."""
    if row.get("reference_low") is not None:
        return row["reference_mean"], row["reference_low"], row["reference_high"]
    return row["auroc"], row["low"], row["high"]
