"""Figures that set runs beside each other: bits per dimension against training time, and where the
bits of each system are.

Both are of runs that were scored on the same held-out images (`results_files.by_images` sorts them
so), each system in a colour of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from pcdm_lib.experiments.results_files import Result, number, scale_shares, text
from pcdm_lib.experiments.tables import obstacles, paired
from pcdm_lib.figures.style import BLUE, GREEN, GREY, PURPLE, SMALL, VERMILION, end_labels, finish
from pcdm_lib.models.checkpoints import read_log

SYSTEM_COLOURS = {"wavelet": BLUE, "laplacian": VERMILION, "standard": GREEN, "vdm": PURPLE}
_DASHES = ("-", "--", ":", "-.")
# bits per dimension of the pixels as they are: what is above it is a network that has not begun to
# learn
_HIGHEST = 8.0
_HALO = [withStroke(linewidth=3, foreground="white")]


def learning_curves(results: Sequence[Result]) -> Figure:
    """Bits per dimension against minutes of training: a line from each run's log, a point with ±2
    standard errors from its held-out images.

    The two are not the same quantity. The line is the training loss, of the weights as they were at
    that step and smoothed over the last tenth of the time so far; while the schedule's endpoints
    are fixed it has neither prior nor decoder, which no weight can change and which come to a few
    thousandths of a bit. The point is the whole bound of the averaged (EMA) weights on images that
    training never saw. A point may lie on either side of its line's end. Runs whose loss was
    weighted for samples are only named below, since that loss is no number of bits.

    Raises:
        ValueError: for no runs, for runs on different held-out images, and where there is nothing
            to draw.
    """
    names = _names(results)
    given = _comparable(results)
    results = [r for r in given if r.weighting == "likelihood"]
    curves, notes = (
        {},
        [
            f"not drawn: {names[r.path]}, {text(r.bpd, 2)} held out; its loss is no number of bits"
            for r in given
            if r.weighting != "likelihood"
        ],
    )
    for result in results:
        minutes, bits, why = _curve(result)
        if why:
            notes.append(f"{names[result.path]} has no line: {why}")
        else:
            curves[result.path] = minutes, bits
    figure, ax = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    ends = []
    seen: Counter[str] = Counter()
    for result in results:
        colour, dash = SYSTEM_COLOURS[result.system], _DASHES[seen[result.system] % len(_DASHES)]
        seen[result.system] += 1
        minutes, bits = curves.get(result.path, (np.empty(0), np.empty(0)))
        ax.plot(minutes, bits, color=colour, linestyle=dash, linewidth=2)
        end = (minutes[-1], bits[-1]) if len(minutes) else None
        if result.bpd is not None and result.minutes:
            end = (result.minutes, result.bpd)
            ax.errorbar(
                *end,
                yerr=2 * _error(result),
                fmt="o",
                color=colour,
                markersize=5,
                capsize=3,
                zorder=4,
            )
        if end is not None:
            ends.append((*end, f"{names[result.path]} {end[1]:.2f}", colour))
    if not ends:
        plt.close(figure)
        raise ValueError(
            f"{', '.join(r.name for r in given)}: neither a log of bits nor a held-out figure "
            f"with its time of training; "
            "train and score a run first"
        )
    _time_axes(ax, [*curves.values()], ends, _jpeg_xl(results))
    caption = [
        results[0].label,
        "lines: training loss, weights of that step, without prior and decoder while the "
        "endpoints are fixed",
        "points: held-out bound, averaged weights, ±2 standard errors",
        *notes,
    ]
    return finish(figure, _verdict(results, names), "\n".join(caption))


def _curve(result: Result) -> tuple[np.ndarray, np.ndarray, str]:
    """Minutes and bits of a run's line, and why there is none where it is empty."""
    try:
        rows = [r for r in read_log(result.path.parent) if isinstance(r, Mapping)]
    except (ValueError, OSError) as error:
        return np.empty(0), np.empty(0), str(error)
    minutes, smooth = smooth_log(rows)
    return minutes, smooth, "" if len(minutes) else "its log is missing or empty"


def smooth_log(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Minutes and bits per dimension of a log, (n,) each, at most 400 of them and evenly spread
    over the logarithm of the time.

    The bits are an exponential moving average whose memory grows with the run: about the last tenth
    of the time so far, so that the line is equally smooth all along a logarithmic axis. Rows
    without a finite figure or time are left out.
    """
    figures = [(number(r.get("seconds")), number(r.get("bpd"))) for r in rows]
    points = sorted((t, b) for t, b in figures if t is not None and b is not None and t > 0)
    total = weight = last = 0.0
    averages = []
    for time, bits in points:
        kept, passed = (last / time) ** 9, time - last
        total, weight, last = kept * total + passed * bits, kept * weight + passed, time
        averages.append(total / weight if weight > 0 else bits)
    minutes, smooth = np.array([t for t, _ in points]) / 60, np.array(averages)
    if len(minutes) > 400:
        wanted = np.geomspace(minutes[0], minutes[-1], 400)
        chosen = np.unique(
            np.append(np.searchsorted(minutes, wanted).clip(max=len(minutes) - 1), len(minutes) - 1)
        )
        minutes, smooth = minutes[chosen], smooth[chosen]
    return minutes, smooth


def bits_by_scale(results: Sequence[Result]) -> Figure:
    """Held-out bits per dimension of each run, stacked by scale, coarsest at the bottom.

    Where there is a run of VDM that a bar can be paired with, its error bar is ±2 standard errors
    of the difference from that run over the same images; this says whether two bars differ and is
    far smaller than the error of one bar, which is mostly the choice of images. A bar that cannot
    be paired has that larger error, dotted.

    Raises:
        ValueError: for no runs, for runs on different held-out images, and where none has a figure.
    """
    results = [r for r in _comparable(results) if r.bpd is not None]
    if not results:
        raise ValueError("none of these runs has a held-out figure: score them first")
    names = _names(results)
    reference = next(
        (
            r
            for r in results
            if r.system == "vdm" and any(not obstacles(r, o) for o in results if o is not r)
        ),
        None,
    )
    figure, ax = plt.subplots(
        figsize=(max(6.4, 1.7 * len(results) + 1.4), 4.8), layout="constrained"
    )
    top = max(map(_bpd, results))
    for x, result in enumerate(results):
        bpd = _bpd(result)
        _stack(ax, x, result)
        if reference is result:
            note = f"{bpd:.3f}"
        elif reference is not None and not obstacles(result, reference):
            mean, error = paired(result, reference)
            note = f"{bpd:.3f}\n{mean:+.3f} ± {error:.3f}".replace("-", "\N{MINUS SIGN}").replace(
                "nan", "n/a"
            )
            ax.errorbar(
                x,
                bpd,
                yerr=0 if math.isnan(error) else 2 * error,
                color="black",
                capsize=5,
                linewidth=1.5,
            )
        else:
            note = f"{bpd:.3f}"
            _, _, lines = ax.errorbar(
                x, bpd, yerr=2 * _error(result), color="black", capsize=5, linewidth=1.2
            )
            lines[0].set_linestyle(":")
        room = 2 * _error(result) if reference is None else 0.0
        ax.text(
            x,
            bpd + room + 0.025 * top,
            note,
            ha="center",
            va="bottom",
            fontweight="bold",
            fontsize=SMALL,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
        )
    jpeg_xl = _jpeg_xl(results)
    ax.set_xticks(range(len(results)), [names[r.path] for r in results])
    ax.set(
        ylabel="held-out bits per dimension",
        ylim=(0, 1.22 * max(top, jpeg_xl or 0.0)),
        xlim=(-0.6, len(results) - 0.4),
    )
    if jpeg_xl is not None:
        ax.axhline(jpeg_xl, color="0.4", linestyle=":", linewidth=1.2, zorder=0)
        end_labels(ax, [(jpeg_xl, f"JPEG XL files {jpeg_xl:.2f}", GREY)])
    errors = (
        f"error bars: ±2 standard errors of the difference from {names[reference.path]}, image by "
        f"image (± is one); dotted: of the figure alone"
        if reference is not None
        else "error bars: ±2 standard errors of each figure alone; there is no run of VDM to pair "
        "with"
    )
    stacked = "each bar stacked by scale, coarsest at the bottom"
    return finish(figure, _verdict(results, names), f"{results[0].label}\n{stacked}; {errors}")


def _comparable(results: Sequence[Result]) -> list[Result]:
    """The runs in the order of the systems; ValueError where they are none, or not of the same
    images."""
    if not results:
        raise ValueError("no runs to draw: train one first, or look in the folder that holds them")
    images = {r.heldout or r.path for r in results}
    if len(images) > 1:
        raise ValueError(
            f"{', '.join(r.name for r in results)} were scored on {len(images)} different sets of "
            f"held-out images: draw each group of "
            "results_files.by_images by itself"
        )
    order = list(SYSTEM_COLOURS)
    return sorted(
        results,
        key=lambda r: (
            order.index(r.system),
            r.title,
            math.inf if r.bpd is None else r.bpd,
            r.name,
        ),
    )


def _names(results: Sequence[Result]) -> dict[Any, str]:
    """What a figure calls each run, by its path: the system, and the run too where there are
    several of the same."""
    count = Counter(r.title for r in results)
    return {r.path: r.title if count[r.title] == 1 else f"{r.title} ({r.name})" for r in results}


def _error(result: Result) -> float:
    """Standard error of the held-out figure from both causes, as far as they are known."""
    return math.hypot(
        *(result.number("evaluation", key) or 0.0 for key in ("se_images", "se_noise"))
    )


def _jpeg_xl(results: Sequence[Result]) -> float | None:
    """Bits per dimension of the same images as JPEG XL files; None where no run says, or where they
    do not agree."""
    found = {
        round(v, 6)
        for r in results
        if (v := r.number("reference_codecs", "JPEG XL", "bpd")) is not None
    }
    return found.pop() if len(found) == 1 else None


def _bpd(result: Result) -> float:
    assert result.bpd is not None, "only runs with a held-out figure are drawn"
    return result.bpd


def _verdict(results: Sequence[Result], names: Mapping[Any, str]) -> str:
    """What the figure shows, in words that its numbers bear out."""
    scored = sorted((r for r in results if r.bpd is not None), key=_bpd)
    if not scored:
        return "Training loss alone: none of these runs was scored on held-out images"
    best, *others = scored
    if not others:
        return f"{names[best.path]} ends at {best.bpd:.2f} held-out bits per dimension"
    second = others[0]
    if not obstacles(best, second):
        mean, error = paired(best, second)
        if not abs(mean) > 2 * error:
            return (
                f"{names[best.path]} and {names[second.path]} end level, at {best.bpd:.2f} and "
                f"{second.bpd:.2f} held-out bits per dimension"
            )
        return (
            f"{names[best.path]} ends lowest, {-mean:.3f} ± {error:.3f} bits per dimension "
            f"below {names[second.path]}"
        )
    return f"{names[best.path]} ends lowest, at {best.bpd:.2f} held-out bits per dimension"


def _time_axes(
    ax: Axes,
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    ends: Sequence[tuple[float, float, str, str]],
    jpeg_xl: float | None,
) -> None:
    """Limits and ticks of the learning figure, JPEG XL's line, and each run's name at its end,
    moved up where it would lie on another.

    The axes end where the runs can still be told apart: most of a curve's height is its first
    seconds.

    Args:
        curves: minutes and bits of each line.
        ends: minutes, bits, name and colour of each run's end.
    """
    levels = [end[1] for end in ends] + ([] if jpeg_xl is None else [jpeg_xl])
    low = min([*levels, *(float(bits.min()) for _, bits in curves)])
    start = max((float(bits.max()) for _, bits in curves), default=0.0)
    lasts = [min(float(bits[-1]), _HIGHEST) for _, bits in curves]
    high = max(min(start, _HIGHEST, low + max(2.0, 3 * (max(levels) - low))), *levels, *lasts)
    margin = 0.06 * max(high - low, 0.5)
    low, high = low - margin, high + margin
    seen = [
        *(float(m) for minutes, bits in curves for m in minutes[bits <= high][:1]),
        *(end[0] for end in ends),
    ]
    ax.set_xscale("log")
    ax.set_xlim(0.8 * min(seen), 1.25 * max(end[0] for end in ends))
    ax.set(
        xlabel="minutes of training (logarithmic)", ylabel="bits per dimension", ylim=(low, high)
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if jpeg_xl is not None:
        ax.axhline(jpeg_xl, color="0.4", linestyle=":", linewidth=1.2, zorder=0)
        ax.annotate(
            f"JPEG XL files, held out {jpeg_xl:.2f}",
            (0, jpeg_xl),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            va="bottom",
            fontsize=SMALL,
            color="0.35",
            path_effects=_HALO,
            zorder=5,
        )
    gap = 0.06 * (high - low)
    placed: list[tuple[float, float, str]] = []
    span = math.log(ax.get_xlim()[1] / ax.get_xlim()[0])
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = y
        for there, taken, other in placed:  # from below
            apart, left = abs(math.log(x / there)) / span, name if x < there else other
            # a letter takes about 1.5 % of the axis
            if apart < 0.015 * (len(left) + 1) and height < taken + gap:
                height = taken + gap
        placed.append((x, height, name))
        # from the point to the right in points, in height as data
        tall = ax.figure.bbox.height / ax.figure.dpi  # inches
        points = (height - y) / (high - low) * ax.get_position().height * tall * 72
        ax.annotate(
            name,
            (x, y),
            xytext=(9, points),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
            path_effects=_HALO,
            zorder=5,
        )


def _stack(ax: Axes, x: float, result: Result) -> None:
    """One bar: the shares of its scales in its system's colour, finer ones paler; the whole in one
    piece where they are not known."""
    shares, bpd = scale_shares(result), _bpd(result)
    if len(shares) < 2:
        shares = {"one scale" if result.system == "vdm" else "all scales": bpd}
    bottom, colour = 0.0, np.array(to_rgb(SYSTEM_COLOURS[result.system]))
    for i, (name, share) in enumerate(shares.items()):
        pale = colour + (1 - colour) * min(0.45 * i, 0.8)
        ax.bar(x, share, 0.62, bottom=bottom, color=pale, edgecolor="white", linewidth=1)
        if share > 0.06 * bpd:
            dark = float(np.dot(pale**2.2, (0.2126, 0.7152, 0.0722))) < 0.29
            ax.text(
                x,
                bottom + share / 2,
                f"{name}\n{share:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if dark else "black",
            )
        bottom += share
