"""What every figure keeps to, measured on the figure as it is drawn."""

from __future__ import annotations

import itertools
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 9  # points


def faults(figure: Figure) -> list[str]:
    """In words, all that a figure does wrong: text that is too small, cut off or printed over other
    text or over bars, a legend on data, no title, axes without names. Empty for a good one."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    texts = [(t, t.get_window_extent(renderer)) for t in _texts(figure)]
    found = [
        f"{t.get_text()!r} has {t.get_fontsize():g} points"
        for t, _ in texts
        if t.get_fontsize() < SMALLEST
    ]
    edge = figure.bbox.padded(1.5)
    found += [
        f"{t.get_text()!r} is cut off"
        for t, box in texts
        if not (edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1)
    ]
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        if _overlap(a, b) > 2:
            found.append(f"{one.get_text()!r} and {other.get_text()!r} lie on each other")
    found += _legends_on_data(figure, renderer)
    for ax in figure.axes:
        found += _text_across_bars(ax, renderer)
    if not (figure.get_suptitle() or any(_title(ax) for ax in figure.axes)):
        found.append("no title")
    for ax in _data_axes(figure):
        found += [f"an axis without a name: {what}" for what in _unnamed(figure, ax)]
    return found


def _texts(figure: Figure) -> list[Text]:
    """All text that is seen, ticks and legends included."""
    hidden = {
        id(t)
        for ax in figure.axes
        if not ax.axison
        for axis in (ax.xaxis, ax.yaxis)
        for t in axis.findobj(Text)
    }
    outside = set()
    for ax in figure.axes:
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            low, high = min(low, high), max(low, high)
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                at, slack = tick.get_loc(), 1e-6 * abs(tick.get_loc()) + 1e-12 * (high - low)
                if not low - slack <= at <= high + slack:
                    outside |= {id(tick.label1), id(tick.label2)}
    return [
        t
        for t in figure.findobj(Text)
        if t.get_visible() and t.get_text().strip() and id(t) not in hidden | outside
    ]


def _overlap(a: Bbox, b: Bbox) -> float:
    """Pixels by which two boxes reach into each other."""
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


def _title(ax: Axes) -> str:
    return ax.get_title("left") or ax.get_title() or ax.get_title("right")


def _data_axes(figure: Figure) -> list[Axes]:
    """Axes with ticks: neither pictures nor colour bars nor what is switched off."""
    return [
        ax
        for ax in figure.axes
        if ax.axison
        and not hasattr(ax, "_colorbar")
        and (len(ax.get_xticks()) or len(ax.get_yticks()))
    ]


def _unnamed(figure: Figure, ax: Axes) -> list[str]:
    """Which of an axis's two directions has numbers and no name, on it or on one that shares it."""
    missing = []
    for axis, siblings, label in (
        (ax.xaxis, ax.get_shared_x_axes(), Axes.get_xlabel),
        (ax.yaxis, ax.get_shared_y_axes(), Axes.get_ylabel),
    ):
        numbers = any(_is_number(t.get_text()) for t in axis.get_ticklabels() if t.get_visible())
        if numbers and not any(label(other) for other in siblings.get_siblings(ax)):
            missing.append(f"{axis.axis_name} of {_title(ax)!r}")
    return missing


def _is_number(text: str) -> bool:
    plain = re.sub(r"[^0-9.]", "", text)
    return bool(plain) and not re.search("[A-Za-z]{2}", text.replace("mathdefault", ""))


def _legends_on_data(figure: Figure, renderer) -> list[str]:
    """Legends whose box holds a point of a curve, of a scatter or of a bar."""
    found = []
    for holder in [figure, *figure.axes]:
        for made in holder.legends if isinstance(holder, Figure) else [holder.get_legend()]:
            if made is None:
                continue
            box = made.get_window_extent(renderer)
            for ax in figure.axes:
                name = f"the legend {[t.get_text() for t in made.get_texts()]}"
                if any(box.contains(*point) for point in _points(ax)):
                    found.append(f"{name} lies on data")
                elif any(_overlap(box, bar) > 1 for bar in _bars(ax)):
                    found.append(f"{name} lies on bars")
    return found


def _points(ax: Axes) -> np.ndarray:
    """Pixels of curves, densely, and of scattered points, within the axis."""
    found = [np.empty((0, 2))]
    for line in ax.lines:
        path = line.get_path().transformed(line.get_transform()).vertices
        path = path[np.isfinite(path).all(axis=1)]
        if len(path) > 1 and line.get_linestyle() not in ("None", " ", ""):
            steps = np.linspace(0, 1, 60)[:, None, None]
            path = (path[:-1] + steps * (path[1:] - path[:-1])).reshape(-1, 2)
        found.append(path)
    for group in ax.collections:
        if isinstance(group, PathCollection) and not isinstance(group, QuadMesh):
            found.append(ax.transData.transform(group.get_offsets()))
    points, frame = np.concatenate(found), ax.get_window_extent()
    inside = (points >= frame.min - 1) & (points <= frame.max + 1)
    return points[inside.all(axis=1)]


def _bars(ax: Axes) -> list[Bbox]:
    frame = ax.get_window_extent()
    bars = [p for c in ax.containers for p in getattr(c, "patches", []) if isinstance(p, Rectangle)]
    boxes = [Bbox.intersection(p.get_window_extent(), frame) for p in bars]
    return [b for b in boxes if b is not None and b.width * b.height > 0]


def _text_across_bars(ax: Axes, renderer) -> list[str]:
    """Text that is partly on a bar; a number within its own bar is well placed."""
    found, bars = [], _bars(ax)
    for text in ax.texts:
        box = text.get_window_extent(renderer)
        # stacked bars that touch are one; a box's corners may reach a pixel over its glyphs
        covered = [b for b in bars if _overlap(box, b) > 2]
        if covered and text.get_text().strip():
            whole = Bbox.union(covered)
            within = _overlap(box, whole) >= min(box.width, box.height) - 3
            if not (
                within and whole.x0 - 3 <= box.x0 and box.x1 <= whole.x1 + 3 and len(covered) <= 2
            ):
                found.append(f"{text.get_text()!r} is printed over bars")
    return found
