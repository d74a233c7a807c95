"""The style that all figures share: one palette, one way to title, caption, label and show.

Nothing here changes matplotlib's settings on import: a notebook calls `use_style()` once. Colours
are those of Okabe and Ito, which colour-blind readers can tell apart; signed arrays go from orange
over white (zero) to purple. A figure's title says what to see and stands at the upper left, its
caption (data, number of images, seeds) at the bottom. Legends stand below their axes, or a curve
has its name at its end: neither can lie on data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY, PALE = "0.35", "0.65"  # of text and thin lines; of bars that are not ours
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
SIGNED, HEAT = "PuOr", "magma"
BITS = "bits per dimension"
SMALL = 9  # points: captions, legends and numbers beside bars; nothing is smaller


def use_style() -> None:
    """Settings of the project's figures, for the session of the notebook that calls it.

    In a notebook, pictures have twice the resolution of the screen that they are laid out for;
    for this it has to be called before the first figure is drawn.
    """
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "savefig.dpi": 180,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "figure.titlesize": 12,
            "legend.fontsize": SMALL,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.interpolation": "nearest",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
        }
    )
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:  # read by the notebook's backend when it draws its first figure
        shell.config.InlineBackend.figure_formats = {"retina"}


def show(*figures: Figure) -> None:
    """Show figures below a notebook's cell, and free their memory."""
    from IPython.display import display

    for figure in figures:
        display(figure)
        plt.close(figure)


# ---------------------------------------------------------------- titles and captions


def finish(figure: Figure, title: str = "", caption: str = "") -> Figure:
    """Title, caption and titles of panels, each wrapped to the room that it has.

    Args:
        figure: all else is drawn and labelled already.
        title: what to see.
        caption: which data, how many images, which seeds; lines of it are kept.

    Returns:
        The same figure.
    """
    room = figure.bbox.width
    if title:
        font = FontProperties(size=plt.rcParams["figure.titlesize"])
        figure.suptitle(_wrapped(figure, title, font, 0.97 * room), x=0.01, ha="left")
    if caption:
        text = _wrapped(figure, caption, FontProperties(size=SMALL), 0.97 * room)
        figure.supxlabel(text, x=0.01, ha="left", fontsize=SMALL, color=GREY)
    named = [ax for ax in figure.axes if panel_title(ax)]
    if named:
        figure.draw_without_rendering()  # the panels' widths are known from here on
        font = FontProperties(size=plt.rcParams["axes.titlesize"])
        for ax in named:
            ax.set_title(_wrapped(figure, panel_title(ax), font, max(_own_width(ax), 40)))
    return figure


def panel_title(ax: Axes) -> str:
    """What stands above one axis."""
    return ax.get_title(loc="left") or ax.get_title()


def _own_width(ax: Axes) -> float:
    """Pixels from the left of an axis to its right neighbour, or to the figure's edge."""
    box = ax.get_window_extent()
    after = [
        other.get_window_extent().x0
        for other in ax.figure.axes
        if other.get_window_extent().x0 > box.x1
        and other.get_window_extent().y0 < box.y1
        and other.get_window_extent().y1 > box.y0
    ]
    return min([*after, ax.figure.bbox.width]) - box.x0 - 8


def _renderer(figure: Figure | SubFigure) -> Any:
    """What measures text in pixels; every canvas of pixels has one, and the base class none."""
    canvas: Any = figure.canvas
    return canvas.get_renderer()


def _wrapped(figure: Figure, text: str, font: FontProperties, room: float) -> str:
    """The text in lines that are no wider than `room` pixels."""
    renderer, lines = _renderer(figure), []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}".strip()
            width, _, _ = renderer.get_text_width_height_descent(
                longer, font, ismath=bool(is_math_text(longer))
            )
            if line and width > room and longer.count("$") % 2 == 0 and line.count("$") % 2 == 0:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)


# ---------------------------------------------------------------- legends and labels


def legend(
    ax: Axes,
    handles: Sequence | None = None,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    title: str = "",
) -> Legend:
    """A legend below an axis and its labels, where no data can be; call it after these are set.

    Args:
        handles, labels: where they are not the axis's own.
        columns: as many as fit, where it is None.
    """
    figure, renderer = ax.figure, _renderer(ax.figure)
    if handles is None:
        handles, labels = ax.get_legend_handles_labels()
    elif labels is None:
        labels = [h.get_label() for h in handles]
    ticks = ax.xaxis.get_tightbbox(renderer)
    below = 0.0 if ticks is None else max(0.0, ax.get_window_extent().y0 - ticks.y0)
    down = ScaledTranslation(0, -(below / figure.dpi + 6 / 72), figure.dpi_scale_trans)
    for count in [columns] if columns else range(len(labels), 0, -1):
        made = ax.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=ax.transAxes + down,
            borderaxespad=0,
            borderpad=0,
            ncols=count,
            title=title or None,
            title_fontsize=SMALL,
            alignment="left",
            columnspacing=1.4,
            handlelength=1.8,
        )
        if made.get_window_extent(renderer).width <= 0.95 * ax.get_window_extent().width:
            break
    return made


def legend_beside(ax: Axes, reverse: bool = False) -> Legend:
    """A legend right of an axis, in the order of stacked bars where it is reversed."""
    return ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=reverse)


def common_legend(
    figure: Figure, handles: Sequence, labels: Sequence[str], columns: int, caption: str = ""
) -> None:
    """A legend of all panels below the figure, with the caption between the two."""
    made = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    room = 0.97 * figure.bbox.width
    font = FontProperties(size=SMALL)
    made.set_title(_wrapped(figure, caption, font, room), prop=font)
    made.get_title().set_color(GREY)
    made.set_alignment("left")


def end_labels(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of curves right of the axis at the height of their ends, moved apart where they would
    touch.

    Args:
        ends: height in data, name and colour of each curve. The axis's limits are set already.
    """
    low, high = ax.get_ylim()
    scale = ax.get_window_extent().height / abs(high - low)
    gap = 1.35 * SMALL * ax.figure.dpi / 72 / scale
    places = apart([min(max(y, low), high) for y, _, _ in ends], gap)
    for place, (_, name, colour) in zip(places, ends):
        ax.annotate(
            name,
            (1, place),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=SMALL,
            annotation_clip=False,
        )


def apart(values: Sequence[float], gap: float) -> np.ndarray:
    """Places for labels of the values, moved up where they would be nearer than `gap` to the one
    below."""
    places, order = np.array(values, float), np.argsort(values, kind="stable")
    for below, above in zip(order, order[1:]):
        places[above] = max(places[above], places[below] + gap)
    return places


def minus(text: str) -> str:
    """Hyphens of printed numbers as minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


# ---------------------------------------------------------------- pictures


def picture(image: Tensor) -> np.ndarray:
    """(C, H, W) uint8, or floats in 0..1, -> (H, W, 3) in 0..1 for imshow."""
    x = image.detach().cpu()
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double().clamp(0, 1)
    return x.expand(3, -1, -1).permute(1, 2, 0).numpy()


def bare(ax: Axes, title: str = "") -> Axes:
    """An axis for a picture: no ticks, a thin frame."""
    ax.set(xticks=[], yticks=[], title=title)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.5, color="0.6")
    return ax
