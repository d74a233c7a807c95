"""Figures of reproduce/compression.ipynb."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pcdm_lib.compression import Measured

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def sizes(measured: Sequence[Measured], label: str) -> Figure:
    """Bound, net and file of every model and T, bits per dimension; error bars are the standard error of net minus bound."""
    names = [f"{m.model}\nT = {m.settings.steps}, {m.books.images} images" for m in measured]
    figure, ax = plt.subplots(figsize=(8.5, 0.75 * len(names) + 1.4), layout="constrained")
    rows = np.arange(len(names))[::-1]
    ax.plot([np.nan if m.bound is None else m.bound.bpd for m in measured], rows, "o", mfc="none", mec=_COLOURS[5], ms=11, mew=2, label="T-step bound")
    ax.errorbar([m.books.net_bpd for m in measured], rows, xerr=[m.excess[1] for m in measured], fmt=".", color=_COLOURS[0], capsize=3, label="net bits on the stack")
    ax.plot([m.file_bpd for m in measured], rows, "|", color="black", ms=16, mew=2, label="file, everything counted")
    ax.set_yticks(rows, names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.set_xlabel(f"bits per dimension\n{label}")
    ax.set_title("The stack grows by the bound, and the file is little more")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=3, frameon=False)
    return figure


def destinations(measured: Sequence[Measured], label: str) -> Figure:
    """Left: the bytes of each file by what they carry. Right: net bits of each scale against the step of its chain."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9), layout="constrained", width_ratios=(1, 1.3))
    kinds = ("by the model", "start of the stack", "plain files", "container")
    for row, m in enumerate(measured):
        values = np.array([m.books.model_bits, m.books.start_bits, m.books.plain_bits, m.books.container_bits]) / m.books.dims
        begins = np.concatenate([[0], values.cumsum()[:-1]])
        left.barh(row, values, left=begins, color=_COLOURS[:4], edgecolor="white")
    left.set_yticks(range(len(measured)), [f"{m.model}\nT = {m.settings.steps}" for m in measured])
    left.set_xlabel("bits per dimension of the file")
    left.set_title("What the bytes carry")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in _COLOURS[:4]]
    left.legend(handles, kinds, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    for number, m in enumerate(measured):
        for style, (scale, row) in zip(("-", "--", ":", "-."), m.books.steps.items()):
            right.plot(np.arange(1, len(row) - 1) / m.settings.steps, np.cumsum(row)[1:-1] / m.books.model_dims, style, color=_COLOURS[number],
                       label=f"{m.model}, {scale}")
    right.set_xlabel("time step k / T of the latent that was just coded")
    right.set_ylabel("bits per dimension so far")
    right.set_title("Bits along the chain: each latent less the next one's noise")
    if right.lines:  # there is nothing to see where no image was the model's
        right.legend(frameon=False, fontsize=8)
    figure.suptitle(label, fontsize=9, y=-0.02, va="top")
    return figure
