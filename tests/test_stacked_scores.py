"""The score of a noisy image beside the scores of its scales: both against densities, the limits,
and the bits that the two differ by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pcdm_lib.experiments.studies.stacked_scores import (
    draw_noisy,
    gamma_of_noise,
    hidden_bits,
    joint_scores,
    score_gap,
    stacked_scores,
    transport_gap,
)
from pcdm_lib.likelihood.enumerable import EnumeratedSource, example_source
from pcdm_lib.maps import HaarWavelet, LaplacianPyramid, Subsampling

SOURCE = example_source()
WAVELET = HaarWavelet(1)


def independent_source() -> EnumeratedSource:
    """2x2 images whose Haar details do not depend on their sum: s is 4 or 8, and the details are
    one of four kinds, all combinations with the product of two laws."""
    images, weights = [], []
    for s, mass in ((4, 0.3), (8, 0.7)):
        for (p, q, r), share in zip(
            ((0, 0, 0), (2, 2, 0), (2, -2, 0), (0, 0, 4)), (0.4, 0.3, 0.2, 0.1)
        ):
            images.append([s + p + q + r, s + p - q - r, s - p + q - r, s - p - q + r])
            weights.append(math.log(mass * share))
    listed = torch.tensor(images).reshape(-1, 1, 2, 2) // 4
    return EnumeratedSource(listed, torch.tensor(weights), 3)


def haar(images: Tensor) -> tuple[Tensor, Tensor]:
    """Base and details of 2x2 images scaled to [-1, 1], by hand."""
    a, b, c, d = (images.double().flatten(1) * 2 / 3 - 1).unbind(1)
    details = torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], 1) / 2
    return (a + b + c + d)[:, None] / 2, details


def log_mixture(z: Tensor, points: Tensor, log_mass: Tensor, gamma: float) -> Tensor:
    """log sum_k mass_k N(z; alpha y_k, sigma^2) up to a constant, of one z."""
    sigma2 = 1 / (1 + math.exp(-gamma))
    apart = (z - math.sqrt(1 - sigma2) * points).square().sum(1)
    return torch.logsumexp(log_mass - apart / (2 * sigma2), 0)


@pytest.mark.parametrize("ratio", [0.166, 0.5, 2.0])
def test_scores_are_the_slopes_of_the_densities(ratio: float) -> None:
    """Central differences of both log densities, written out here."""
    drawn = draw_noisy(SOURCE, WAVELET, gamma_of_noise(SOURCE, ratio), 6, seed=1)
    joint, stacked = joint_scores(SOURCE, WAVELET, drawn), stacked_scores(SOURCE, WAVELET, drawn)
    base, details = haar(SOURCE.images)
    clean, step = haar(drawn.images)[0], 1e-5
    for i in range(6):
        z1, z2 = (z[i].flatten() for z in drawn.noisy)
        same = (base - clean[i]).abs()[:, 0] < 1e-9

        def whole(z: Tensor) -> Tensor:
            return log_mixture(z, torch.cat([base, details], 1), SOURCE.log_prob, drawn.gamma)

        def coarse(z: Tensor) -> Tensor:
            return log_mixture(z, base, SOURCE.log_prob, drawn.gamma)

        def fine(z: Tensor, same: Tensor = same) -> Tensor:
            return log_mixture(z, details[same], SOURCE.log_prob[same], drawn.gamma)

        for law, z, found in (
            (whole, torch.cat([z1, z2]), torch.cat([v[i].flatten() for v in joint])),
            (coarse, z1, stacked[0][i].flatten()),
            (fine, z2, stacked[1][i].flatten()),
        ):
            steps = step * torch.eye(len(z), dtype=torch.float64)
            slope = torch.stack([(law(z + e) - law(z - e)) / (2 * step) for e in steps])
            assert torch.allclose(found, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_independent_scales_stack(ratio: float) -> None:
    """Where details do not depend on the base, the stack is the score, and nothing is hidden."""
    gap = score_gap(independent_source(), ratio=ratio, draws=256)
    assert float(gap.difference.max()) < 1e-18 < 1.0 < gap.score
    assert abs(hidden_bits(independent_source(), ratio=ratio, draws=256)[0]) < 1e-12


def test_dependent_scales_do_not() -> None:
    """On the test source both blocks differ, by far more than the errors."""
    gap = score_gap(SOURCE, ratio=0.25, draws=4096)
    assert bool((gap.difference > 10 * gap.difference_error).all())
    assert 0.4 < float(gap.relative.sum()) < 0.7


def test_both_ends() -> None:
    """Without noise the integers are known, so the stack is the score. With much noise the details'
    difference goes to alpha / sigma (E[y_2 | y_1] - E[y_2]); the base's falls faster."""
    assert float(score_gap(SOURCE, ratio=0.05, draws=4096).relative.sum()) < 1e-3
    sums, details = SOURCE.images.flatten(1).sum(1), haar(SOURCE.images)[1]
    mass = SOURCE.log_prob.exp()
    mean, spread = mass @ details, 0.0
    for value in sums.unique():
        rows = sums == value
        share = mass[rows].sum()
        spread += float(share * (mass[rows] @ details[rows] / share - mean).square().sum())
    ratio = 300.0
    gap = score_gap(SOURCE, ratio=ratio, draws=16384)
    snr = math.exp(-gamma_of_noise(SOURCE, ratio))
    assert float(gap.difference[1]) == pytest.approx(snr * spread, rel=0.02)
    assert float(gap.difference[0]) < 0.01 * float(gap.difference[1])


def test_difference_integrates_to_the_hidden_bits() -> None:
    """Half the integral of details less base over gamma is the change of the mutual information,
    which `hidden_bits` finds from densities alone."""
    low, high = 0.2, 0.5
    grid = torch.linspace(gamma_of_noise(SOURCE, low), gamma_of_noise(SOURCE, high), 9)
    ratios = (grid / 2).exp() * SOURCE.max_value / 2
    gaps = [score_gap(SOURCE, ratio=float(r), draws=16384).difference for r in ratios]
    area = float(torch.trapezoid(torch.stack([g[1] - g[0] for g in gaps]), grid) / 2)
    ends = [hidden_bits(SOURCE, ratio=r, draws=16384) for r in (low, high)]
    change = (ends[0][0] - ends[1][0]) * 4 * math.log(2)
    error = math.hypot(ends[0][1], ends[1][1]) * 4 * math.log(2)
    assert error < 0.02
    assert area == pytest.approx(change, abs=4 * error + 0.005)


def test_pyramid_has_the_same_scores() -> None:
    """Its coordinates are those of the wavelet."""
    ours, theirs = (
        score_gap(SOURCE, kind(1), ratio=0.3, draws=128) for kind in (HaarWavelet, LaplacianPyramid)
    )
    assert torch.allclose(ours.difference, theirs.difference)


def test_equation_33_has_no_constant() -> None:
    """A cascade with exact networks has no error at any scale, and yet a distance."""
    near, far = transport_gap(SOURCE, ratio=0.25, draws=16)
    assert 0.2 * far < near


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match="does not preserve volume"):
        score_gap(SOURCE, Subsampling(1), draws=4)
    with pytest.raises(ValueError, match="positive and finite"):
        gamma_of_noise(SOURCE, 0.0)
