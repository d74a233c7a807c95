"""Figures of notebook 02: what they compute before they draw."""

import math

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pcdm_lib.figures import bound


def test_area_of_an_error_of_one_is_half_a_nat_per_unit_of_gamma():
    gammas = torch.linspace(-13.0, 5.0, 7)
    assert bound.area_bits(gammas, torch.ones(7)) == pytest.approx(9 / math.log(2))
    assert bound.area_bits([0.0, 1.0, 4.0], torch.tensor([0.0, 2.0, 2.0])) == pytest.approx(
        (1 + 6) / 2 / math.log(2)
    )


def test_blocks_of_an_image_survive_longer_than_its_pixels():
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    for gamma in (-3.0, 0.0, 3.0):
        assert bound.surviving(ramp, gamma, 4) > bound.surviving(ramp, gamma)
    assert bound.surviving(ramp, math.log(float(ramp.var()))) == pytest.approx(0.5)


def test_white_noise_gains_nothing_from_blocks():
    noise = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert bound.surviving(noise, 1.0, 4) == pytest.approx(bound.surviving(noise, 1.0), rel=0.05)


def test_bars_end_at_the_sum_of_their_terms_without_the_totals():
    terms = {"prior": 0.25, "diffusion": 2.0, "reconstruction": 0.5, "total": 2.75}
    table = {"base": terms, "details1": terms, "total": {k: 2 * v for k, v in terms.items()}}
    figure = bound.term_bars({"one": {"base": terms}, "two": table}, {"entropy": 2.5}, "title")
    ends = {}
    for bar in figure.axes[0].patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0.0), bar.get_x() + bar.get_width())
    assert ends == {0: pytest.approx(2.75), 1: pytest.approx(5.5)}
    assert "5.50" in [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)


def test_the_drawing_of_the_idea_wants_no_more_than_an_image():
    figure = bound.idea(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    assert (
        len(figure.axes) == 1 + 1 + 2 * 4
    )  # the canvas, the image, two scales with three noisy copies
    plt.close(figure)
