"""Figures of a training run: the live curve, where the bits go, samples scale by scale."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pcdm_lib.figures.style import (
    BLACK,
    COLOURS,
    GREY,
    PALE,
    bare,
    end_labels,
    finish,
    legend_beside,
    picture,
)
from pcdm_lib.likelihood.evaluation import TERMS, Evaluation
from pcdm_lib.models.cascade import Cascade, Samples


def training_curve(
    rows: list[Mapping[str, Any]], label: str, target: float | None = None
) -> Figure:
    """Training loss against time: each scale's share in bits per dimension of the image, and their
    sum. While the schedule's endpoints are fixed the loss is the diffusion term alone: prior and
    decoder cannot be trained."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    minutes = np.array([r["seconds"] for r in rows]) / 60
    names = list(rows[-1]["scales"]) if rows else []
    whole = "all scales" if len(names) > 1 else "one scale"
    series = {whole: np.array([r["bpd"] for r in rows])}
    if len(names) > 1:
        series |= {name: np.array([r["scales"][name] for r in rows]) for name in names}
    ends = []
    for colour, (name, values) in zip((BLACK, *COLOURS), series.items()):
        smooth = _smooth(values)
        axes.plot(minutes, values, color=colour, alpha=0.25, linewidth=0.8)
        dot = "o" if len(rows) == 1 else None  # a single row makes no line
        axes.plot(minutes, smooth, color=colour, linewidth=2, marker=dot)
        if len(smooth):
            ends.append((smooth[-1], f"{name}: {smooth[-1]:.2f}", colour))
    weighting = rows[-1].get("weighting") if rows else None
    # a weighted loss is no bits, and files have no place beside it
    if target is not None and not weighting:
        axes.axhline(target, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
        ends.append((target, f"JPEG XL, held out: {target:.2f}", GREY))
    top = np.quantile(series[whole], 0.9) if rows else 8
    unit = (
        f"training loss, weighted ({weighting}): not bits"
        if weighting
        else "training loss, bits per dimension"
    )
    axes.set(
        xlabel="minutes of training",
        ylabel=unit,
        ylim=(0, 2 * top if weighting else max(6.0, 1.3 * top)),
    )
    end_labels(axes, ends)
    what = "loss" if weighting else "bound"
    learns = f"Each scale learns its own part of the {what}"
    return finish(figure, learns if len(names) > 1 else f"One scale learns the whole {what}", label)


def _smooth(values: np.ndarray, keep: float = 0.8) -> np.ndarray:
    """Exponential moving average, corrected for its start."""
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return np.array(out)


class LiveCurve:
    """Redraws `training_curve` in place while training runs: pass it as `on_log`.

    Args:
        display: the notebook's `display`. every: seconds between two drawings.
    """

    def __init__(
        self,
        display: Callable[..., Any],
        label: str,
        target: float | None = None,
        every: float = 10.0,
    ):
        self.rows: list[Mapping[str, Any]] = []
        self.display, self.label, self.target, self.every = display, label, target, every
        self.handle, self.last = None, -np.inf

    def __call__(self, record: Mapping[str, Any]) -> None:
        self.rows.append(record)
        if time.monotonic() - self.last >= self.every:
            self.draw()

    def draw(self) -> None:
        """Show the curve as it is now."""
        if not self.rows:
            return
        self.last = time.monotonic()
        figure = training_curve(self.rows, self.label, self.target)
        if self.handle is None:
            self.handle = self.display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)


def bits_by_term(
    result: Evaluation, codecs: Mapping[str, tuple[float, float]], label: str, name: str
) -> Figure:
    """Our bound, stacked by scale and term, beside real files of the same images."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    rows = {k: v for k, v in result.table().items() if k != "total"}
    bottom, parts = 0.0, [(scale, term, row[term]) for scale, row in rows.items() for term in TERMS]
    colours = {scale: COLOURS[i] for i, scale in enumerate(rows)}
    hatch = {"prior": "//", "diffusion": "", "reconstruction": ".."}
    for scale, term, value in parts:
        if value >= 0.005:  # thinner than a line is tall
            axes.bar(
                0,
                value,
                0.6,
                bottom=bottom,
                color=colours[scale],
                hatch=hatch[term],
                edgecolor="white",
                label=f"{scale}: {term} {value:.3f}",
            )
        bottom += value
    axes.errorbar(0, bottom, yerr=2 * result.se, color="black", capsize=4)
    axes.text(
        0,
        bottom + 2 * result.se + 0.08,
        f"{bottom:.2f}",
        ha="center",
        va="bottom",
        fontweight="bold",
    )
    for x, (mean, error) in enumerate(codecs.values(), start=1):
        axes.bar(x, mean, 0.6, color=PALE)
        axes.errorbar(x, mean, yerr=2 * error, color="black", capsize=4)
        axes.text(
            x, mean + 2 * error + 0.08, f"{mean:.2f}", ha="center", va="bottom", fontweight="bold"
        )
    axes.set_xticks(range(len(codecs) + 1), [f"{name}\n(bound)", *(f"{c}\n(file)" for c in codecs)])
    axes.set(
        ylabel="bits per dimension, ±2 standard errors",
        ylim=(0, 1.25 * max([bottom, *(m for m, _ in codecs.values())])),
    )
    legend_beside(axes, reverse=True)
    return finish(figure, "What each held-out image costs, and where our bits go", label)


def sample_growth(cascade: Cascade, samples: Samples, label: str) -> Figure:
    """One row a scale: what the cascade has drawn so far, coarsest first; one column an image."""
    count = len(samples.images)
    figure, axes = plt.subplots(
        len(samples.growth),
        count,
        figsize=(1.05 * count + 1.2, 1.15 * len(samples.growth) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for row, (coarse, name) in enumerate(zip(samples.growth, cascade.parts)):
        for ax, image in zip(axes[row], cascade.brightness(row, coarse)):
            bare(ax).imshow(picture(image), interpolation="nearest")
        axes[row, 0].set_ylabel(f"{name}\n{coarse.shape[-1]}x{coarse.shape[-2]}")
    title = "Samples grow scale by scale: each row adds the detail of one scale"
    return finish(figure, title if len(samples.growth) > 1 else "Samples", label)


def likelihood_differences(rows: list[Mapping[str, Any]], label: str) -> Figure:
    """Several ways to one model's likelihood on the same images, as differences to the
    continuous-time bound, ±2 standard errors.

    Args:
        rows: as `experiment.likelihood_rows` gives them, the continuous-time bound first.
    """
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.3), layout="constrained")
    places = range(len(rows) - 1)
    axes.axvline(0, color="0.4", linestyle=":", linewidth=1)
    for place, row, colour in zip(places, rows[1:], COLOURS):
        axes.errorbar(
            row["minus_continuous"],
            place,
            xerr=2 * row["minus_se"],
            fmt="o",
            color=colour,
            capsize=4,
        )
    axes.set_yticks(
        places, [f"{row['name']}\n{row['evaluations']:.0f} evaluations" for row in rows[1:]]
    )
    axes.set(
        xlabel=f"bits per dimension more than the continuous-time bound of {rows[0]['bpd']:.3f}, "
        f"±2 standard errors",
        ylim=(len(rows) - 1.5, -0.5),
    )
    title = (
        "The same likelihood three ways: fewer steps pay more, the flow counts a slightly "
        "different model"
    )
    return finish(figure, title, f"{rows[0]['images']} images of {label}")
