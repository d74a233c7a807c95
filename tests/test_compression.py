"""Measured files: their figures add up."""

import math

import numpy as np
import pytest
from figure_rules import faults
from matplotlib import pyplot as plt

from pcdm_lib import data, load_pretrained, records
from pcdm_lib.coding import chunks
from pcdm_lib.experiments import measured_files
from pcdm_lib.figures import coding


@pytest.fixture(scope="module")
def measured():
    images = data.load_data("photos").heldout[::60][:4]
    return measured_files.measure(
        load_pretrained("photos32-wavelet"),
        images,
        "W-PCDM",
        chunks.Settings(steps=20, plain=False),
        repeats=2,
        verify=False,
    )


def test_the_figures_of_a_file(measured):
    statistics = measured.statistics
    assert (
        measured.file_bpd == pytest.approx(statistics.bpd)
        and statistics.images == 4
        and statistics.dims == 4 * 3072
    )
    assert len(measured.bound.parts) == 4 and measured.bound.steps == 20
    mean, error = measured.excess
    assert mean == pytest.approx(statistics.net_bpd - measured.bound.bpd, rel=0.01, abs=0.02)
    # at so few steps it is well below the bound: a latent far from where it was expected costs 24
    # bits, or an escape, and not its squared distance
    assert error > 0 and mean < 4 * error
    assert records.finite(measured.to_dict())["statistics"]["model_images"] == 4
    assert set(measured.row()) >= {"T-step bound", "net", "file", "images/s"}


def test_from_how_many_images_on_the_rest_is_small(measured):
    few, many = measured.images_within(0.02), measured.images_within(0.2)
    assert few > many > 1
    statistics = measured.statistics
    once = statistics.total_bits - statistics.net_bpd * statistics.dims - 40 * statistics.images
    assert once + 40 * few <= 0.02 * statistics.net_bpd * 3072 * few + 1 and once + 40 * (
        few - 1
    ) > 0.02 * statistics.net_bpd * 3072 * (few - 1)
    assert measured.images_within(0.001) is None  # a checksum alone takes more


def test_images_that_are_all_plain():
    images = data.uniform_images(2, (3, 32, 32), seed=0)
    found = measured_files.measure(
        load_pretrained("photos32-wavelet"), images, "W-PCDM", chunks.Settings(steps=2)
    )
    assert (
        found.bound is None
        and math.isnan(found.excess[0])
        and found.images_within(0.02) is None
        and found.statistics.plain_images == 2
    )
    assert (
        found.row()["within 2 % from"] == "never"
        and records.finite(found.to_dict())["excess"]["bpd"] is None
    )
    for figure in (coding.file_sizes([found], "noise"), coding.file_contents([found], "noise")):
        assert faults(figure) == []
        plt.close(figure)


def test_figures(measured):
    figure = coding.file_sizes([measured, measured], "photos")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "W-PCDM\nT = 20, 4 images"
    ] * 2
    assert faults(figure) == []
    plt.close(figure)
    figure = coding.file_contents([measured], "photos")
    line = figure.axes[1].lines[0]
    assert len(line.get_xdata()) == 20 and np.isfinite(line.get_ydata()).all()
    plt.close(figure)
