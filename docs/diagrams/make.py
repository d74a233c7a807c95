"""Draw the diagram of the idea: image, map, scales, one diffusion each, bits.

    python docs/diagrams/make.py             writes docs/diagrams/idea.svg, in one to three minutes
    python docs/diagrams/make.py idea.png    or another file

Everything in it is computed: the scales of one held-out patch by the Haar map, their noisy versions
by the forward process, and the bits by a model that comes with the package, `photos32-wavelet`, as
the mean of 8,192 draws of the bound of Eq. 15 from seed 0. Bits are rounded to hundreds; their
standard errors are printed. A white card of its own keeps it legible on dark pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import pcdm_lib as pcdm

PATCH, DRAWS, SEED = 157, 8192, 0
GAMMAS = (-6.0, -2.0, 0.5, 5.0)  # log noise-to-signal ratios that are drawn
WIDTH, HEIGHT, FLOOR = 10.0, 4.9, -0.12  # inches; one unit of the drawing is one inch
INK, SOFT, LINE = "#1a1a1a", "#555555", "#9a9a9a"
BLUE, ORANGE = "#0072B2", "#E69F00"  # Okabe and Ito: readers with colour blindness tell them apart
ROWS = {"base": (2.76, BLUE), "details1": (0.94, ORANGE)}  # lower edge and colour of each scale
SIDE = 0.92  # of a picture


def main() -> None:
    """Compute and draw; write the file."""
    matplotlib.use("Agg")
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "pcdm", "svg.fonttype": "path"})
    image = pcdm.load_data("photos").heldout[PATCH : PATCH + 1]
    bits = measured_bits(image)
    canvas = card()
    draw_image(canvas, image)
    draw_map(canvas)
    for name, values in scales_of(image).items():
        draw_scale(canvas, name, values)
    draw_condition(canvas)
    draw_bits(canvas, bits)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("idea.svg")
    metadata = {"Date": None} if file.suffix == ".svg" else None
    canvas.figure.savefig(file, transparent=True, dpi=200, metadata=metadata)
    print({name: round(value) for name, value in bits.items()})


def measured_bits(image: torch.Tensor) -> dict[str, float]:
    """Bits of each scale of one image under the shipped model: the mean of DRAWS draws."""
    model = pcdm.load_pretrained("photos32-wavelet")
    generator = torch.Generator().manual_seed(SEED)
    batch = image.expand(512, -1, -1, -1)
    with torch.no_grad():
        draws = [model.bound(batch, generator) for _ in range(DRAWS // len(batch))]
    bits = torch.cat([draw.per_scale for draw in draws]).double() / np.log(2)
    print("standard errors:", (bits.std(dim=0) / DRAWS**0.5).tolist(), "bits")
    return dict(zip(draws[0].names, bits.mean(dim=0).tolist()))


def scales_of(image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The orthonormal coefficients of the image in [-1, 1], scaled to unit variance for the eye."""
    scales = pcdm.HaarWavelet(levels=1).analyse(image.double() * 2 / 255 - 1)
    return {name: value / value.std() for name, value in scales.items()}


def card() -> Axes:
    """A white card with round corners on a transparent figure; the axes are in inches."""
    figure = plt.figure(figsize=(WIDTH, HEIGHT))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(FLOOR, FLOOR + HEIGHT))
    ax.axis("off")
    box = FancyBboxPatch(
        (0.06, FLOOR + 0.06),
        WIDTH - 0.12,
        HEIGHT - 0.12,
        fc="white",
        ec="#d0d0d0",
        lw=1,
        boxstyle="round,pad=0,rounding_size=0.15",
    )
    ax.add_patch(box)
    return ax


def picture(
    ax: Axes, pixels: np.ndarray, x: float, y: float, side: float, edge: str = LINE
) -> None:
    """An image (h, w, 3) in 0..1 with its lower left corner at (x, y)."""
    ax.imshow(
        pixels, extent=(x, x + side, y, y + side), interpolation="nearest", zorder=3, aspect="auto"
    )
    ax.add_patch(plt.Rectangle((x, y), side, side, fill=False, ec=edge, lw=1.2, zorder=4))


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = INK,
    bend: float = 0.0,
    width: float = 1.6,
) -> None:
    """An arrow; `bend` is the curvature of its arc."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            lw=width,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            zorder=5,
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def heading(ax: Axes, x: float, title: str, below: str) -> None:
    """The title of a column and one line under it."""
    ax.text(x, 4.45, title, ha="center", va="center", weight="bold", color=INK, size=11)
    ax.text(x, 4.2, below, ha="center", va="center", color=SOFT, size=9.5)


def draw_image(ax: Axes, image: torch.Tensor) -> None:
    """The first column: the image and what it takes as it is stored."""
    heading(ax, 0.93, "Image", r"integers $x$")
    picture(ax, image[0].permute(1, 2, 0).numpy() / 255, 0.28, 1.75, 1.3, INK)
    ax.text(0.93, 1.57, "32 × 32 × 3", ha="center", va="center", size=9.5, color=INK)
    ax.text(
        0.93, 1.35, f"{image[0].numel() * 8:,} bits", ha="center", size=9.5, color=SOFT, va="center"
    )


def draw_map(ax: Axes) -> None:
    """The arrows from the image to its scales."""
    heading(ax, 2.1, "Map", "keeps volume")
    for y, _ in ROWS.values():
        arrow(ax, (1.66, 2.4), (2.66, y + SIDE / 2), bend=0.0)
    ax.text(
        2.13,
        2.4,
        r"$h$",
        ha="center",
        va="center",
        size=13,
        color=INK,
        zorder=7,
        bbox={"boxstyle": "circle,pad=0.22", "fc": "white", "ec": INK, "lw": 1.2},
    )


def draw_scale(ax: Axes, name: str, values: torch.Tensor) -> None:
    """One row: the scale, and its diffusion from clean to noise and back."""
    y, colour = ROWS[name]
    base = name == "base"
    label = r"$z_1$  coarse image" if base else r"$z_2$  detail"
    shape = " × ".join(str(n) for n in (*values.shape[2:], values.shape[1]))
    picture(ax, pixels(values), 2.72, y, SIDE, colour)
    ax.text(2.72 + SIDE / 2, y - 0.15, label, ha="center", va="center", size=9.5, color=INK)
    ax.text(2.72 + SIDE / 2, y - 0.36, shape, ha="center", va="center", size=9.5, color=SOFT)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    left, step, side = 4.22, 0.74, 0.66
    bottom = y + (SIDE - side) / 2
    for i, gamma in enumerate(GAMMAS):
        sigma = torch.sigmoid(torch.tensor(gamma)).sqrt()
        noisy = (1 - sigma**2).sqrt() * values + sigma * noise
        picture(ax, pixels(noisy), left + i * step, bottom, side, colour)
    right = left + (len(GAMMAS) - 1) * step + side
    arrow(ax, (left, y + SIDE + 0.04), (right, y + SIDE + 0.04), LINE, width=1.2)
    arrow(ax, (right, y - 0.04), (left, y - 0.04), colour)
    model = r"network 1 removes it" if base else r"network 2 removes it, shown $z_1$"
    ax.text((left + right) / 2, y - 0.24, model, ha="center", va="center", size=9.5, color=INK)
    if base:
        ax.text(
            (left + right) / 2,
            y + SIDE + 0.18,
            "noise is added",
            ha="center",
            va="center",
            size=9.5,
            color=SOFT,
        )
    enters = y + (SIDE / 2 if base else 0.3)
    arrow(ax, (2.72 + SIDE + 0.08, enters), (left - 0.06, enters), colour)


def pixels(values: torch.Tensor) -> np.ndarray:
    """A scale as a picture: the coarse image as it is, the three detail bands as four quarters."""
    v = values[0]
    if len(v) == 9:
        bands = v.unflatten(0, (3, -1))
        blank = torch.full_like(bands[0], 5.0)  # white: the quarter of z_1
        top = torch.cat([blank, bands[1]], dim=2)
        v = torch.cat([top, torch.cat([bands[0], bands[2]], dim=2)], dim=1)
    return (0.5 + v / 5).clamp(0, 1).permute(1, 2, 0).numpy()


def draw_condition(ax: Axes) -> None:
    """The titles of the middle columns, and the arrow that shows network 2 the coarse image."""
    (top, blue), (low, _) = ROWS.values()
    x, y = 3.88, low + 0.62
    ax.plot([x, x], [top + SIDE / 2, y], color=blue, lw=1.6, zorder=5, solid_capstyle="butt")
    arrow(ax, (x - 0.011, y), (4.16, y), blue)
    ax.text(x + 0.08, 2.02, r"$z_1$, exact", ha="left", va="center", size=9.5, color=blue)
    heading(ax, 3.18, "Scales", "coarse first")
    heading(ax, 5.66, "One diffusion a scale", "each with its own network")
    heading(ax, 8.5, "Bits", "a code length, at most")


def draw_bits(ax: Axes, bits: dict[str, float]) -> None:
    """The last column: the bits of each scale, and their sum beside the stored size."""
    total = sum(bits.values())
    left, full = 7.5, 2.05 / total
    terms = {"base": r"$-\log_2 P(z_1)$", "details1": r"$-\log_2 P(z_2 \mid z_1)$"}
    for name, (y, colour) in ROWS.items():
        middle, length = y + SIDE / 2, f"≤ {round(bits[name], -2):,.0f} bits"
        arrow(ax, (7.2, middle), (left - 0.06, middle), colour)
        bar = plt.Rectangle((left, middle - 0.16), bits[name] * full, 0.32, fc=colour, ec="none")
        ax.add_patch(bar)
        ax.text(left, middle + 0.3, terms[name], ha="left", va="center", size=10, color=INK)
        ax.text(left, middle - 0.32, length, ha="left", va="center", size=10, color=INK)
    ax.text(left, 2.25, r"$+$", ha="left", va="center", size=14, color=INK)
    ax.plot([left, 9.75], [0.86, 0.86], color=LINE, lw=1)
    start = left
    for name, (_, colour) in ROWS.items():
        size = bits[name] * full
        ax.add_patch(plt.Rectangle((start, 0.6), size, 0.16, fc=colour, ec="none"))
        start += size
    length = rf"$-\log_2 P(x)$ ≤ {round(total, -2):,.0f} bits"
    ax.text(left, 0.45, length, ha="left", va="center", size=10, color=INK, weight="bold")
    ax.text(
        left,
        0.24,
        f"{total / 3072:.2f} bits a dimension (Eq. 15)",
        ha="left",
        va="center",
        size=9.5,
        color=SOFT,
    )


if __name__ == "__main__":
    main()
