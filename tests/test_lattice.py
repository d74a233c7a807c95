"""Which integers a scale can hold, and the decoder over exactly those: both against brute force
over all images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pcdm_lib.likelihood import all_images
from pcdm_lib.maps import (
    HaarWavelet,
    HierarchicalMap,
    Identity,
    LaplacianPyramid,
    ScaleSpec,
    Subsampling,
    lattice,
)
from pcdm_lib.maps.lattice import (
    Progression,
    allowed,
    check_member,
    draw,
    log_prob,
    scale_draw,
    scale_log_prob,
)


def spec_of(kind: str, level: int, max_value: int) -> ScaleSpec:
    """The spec of a "details" or "sum" scale of one channel, one coefficient a band."""
    specs = HaarWavelet(level).specs((1, 2**level, 2**level), max_value)
    return specs[1] if kind == "details" else specs[0]


def blocks_of(child_max: int) -> Tensor:
    """(K, 4) integers s, p, q, r of every 2x2 block with entries 0..child_max."""
    a, b, c, d = torch.tensor(
        list(itertools.product(range(child_max + 1), repeat=4)), dtype=torch.int32
    ).T
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], 1)


def cell(v: int | Tensor) -> Tensor:
    """Integers -> (N, 1, 1, 1)."""
    return torch.as_tensor(v, dtype=torch.int32).reshape(-1, 1, 1, 1)


def members(progression: Progression, row: int = 0) -> list[int]:
    low, high = int(progression.low[row]), int(progression.high[row])
    return list(range(low, high + 1, progression.step))


def line(values: int, step: int = 1, low: int = 0) -> tuple[Tensor, Progression]:
    """All `values` members of one progression, and the progression repeated for each of them."""
    z = cell(low + step * torch.arange(values))
    return z, Progression(
        torch.full_like(z, low), torch.full_like(z, low + step * (values - 1)), step
    )


def normaliser(centre: float, tau: float, values: int, step: int = 1) -> tuple[float, Tensor]:
    z, progression = line(values, step)
    logs = log_prob(
        torch.full(z.shape, centre, dtype=torch.float64),
        torch.tensor(tau, dtype=torch.float64),
        z,
        progression,
    )
    return float(logs.exp().sum()), logs


# ---------------------------------------------------------------- which integers


@pytest.mark.parametrize(("level", "max_value"), [(1, 1), (1, 3), (1, 5), (2, 1), (2, 2)])
def test_progressions_are_exactly_what_occurs(level: int, max_value: int) -> None:
    """Law: given the coarser sum and the bands before it, a band's progression is the set of
    integers that some block has."""
    spec, blocks = spec_of("details", level, max_value), blocks_of(max_value * 4 ** (level - 1))
    for depth, band in enumerate(("p", "q", "r"), start=1):
        occurring: dict[tuple[int, ...], set[int]] = {}
        for row in blocks[:, : depth + 1].unique(dim=0).tolist():
            occurring.setdefault(tuple(row[:-1]), set()).add(row[-1])
        known = torch.tensor(list(occurring))
        decoded = {name: cell(known[:, i + 1]) for i, name in enumerate("pqr"[: depth - 1])}
        progression = allowed(spec, band, cell(known[:, 0]), decoded, cell(known[:, 0]))
        for row, values in enumerate(occurring.values()):
            assert members(progression, row) == sorted(values)


@pytest.mark.parametrize("max_value", [1, 3])
def test_sums_and_pixels_fill_their_range(max_value: int) -> None:
    """Law: with nothing coarser, every integer of the range occurs: 0..max for pixels, 0..4^level
    max for sums."""
    sums = blocks_of(max_value)[:, 0].unique().tolist()
    assert (
        members(allowed(spec_of("sum", 1, max_value), "s", None, {}, torch.zeros(1, 1, 1, 1)))
        == sums
    )
    pixel = Identity().specs((1, 1, 1), max_value)[0]
    assert members(allowed(pixel, "x", None, {}, torch.zeros(1, 1, 1, 1))) == list(
        range(max_value + 1)
    )


@pytest.mark.parametrize("level", [1, 2, 3])
def test_large_ranges(level: int) -> None:
    """At 8 bits: random and extreme blocks are members; every step of the last band leads back to a
    block, the ends do not go on."""
    child_max, spec = 255 * 4 ** (level - 1), spec_of("details", level, 255)
    generator = torch.Generator().manual_seed(level)
    corners = torch.tensor(list(itertools.product((0, 1, child_max - 1, child_max), repeat=4)))
    x = torch.cat([torch.randint(0, child_max + 1, (2000, 4), generator=generator), corners]).int()
    a, b, c, d = x.unbind(1)
    truth = {"p": cell(a + b - c - d), "q": cell(a - b + c - d), "r": cell(a - b - c + d)}
    s, decoded = cell(a + b + c + d), {}
    for band, z in truth.items():
        progression = allowed(spec, band, s, decoded, z)
        check_member(z, progression, band)
        decoded[band] = z
    for r, valid in (
        (progression.low, True),
        (progression.high, True),
        (progression.low - 4, False),
        (progression.high + 4, False),
    ):
        children = torch.stack(
            [
                s + truth["p"] + truth["q"] + r,
                s + truth["p"] - truth["q"] - r,
                s - truth["p"] + truth["q"] - r,
                s - truth["p"] - truth["q"] + r,
            ],
            1,
        )
        inside = ((children % 4 == 0) & (children >= 0) & (children <= 4 * child_max)).all(1)
        assert bool((inside == valid).all())


@pytest.mark.parametrize("hierarchy", [HaarWavelet(2), LaplacianPyramid(2)])
def test_every_4x4_binary_image_is_reached_once(hierarchy: HierarchicalMap) -> None:
    """Law: decoding is a walk down a tree whose leaves are the 65,536 images, so a decoder that
    chooses uniformly at every step reaches some image with probability 1: sum over images of the
    product of 1/choices is 1. A choice too many (or missing) would make it less (or fail the
    membership check)."""
    images = all_images(4, 2)
    share = torch.zeros(len(images), dtype=torch.float64)
    for spec, (z, coarse) in zip(hierarchy.specs((1, 4, 4), 1), hierarchy.decompose(images, 1)):
        decoded: dict[str, Tensor] = {}
        for band, values in spec.split(z).items():
            progression = allowed(spec, band, coarse, decoded, values)
            check_member(values, progression, band)
            share -= torch.log1p(progression.last.double()).sum(dim=(1, 2, 3))
            decoded[band] = values
    assert math.isclose(float(share.exp().sum()), 1.0, abs_tol=1e-9)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_spacings_multiply_to_a_pixel(level: int) -> None:
    """Lemma 4.1 on integers: in orthonormal units, pixel spacing 1, spacing_s spacing_p spacing_q
    spacing_r of level j is (spacing of the children)^4, and the whole image's product is 1."""
    dims, log_product = 4**level, 0.0
    for spec in HaarWavelet(level).specs((1, 2**level, 2**level), 255):
        one = torch.full((1, 1, *spec.shape[1:]), 10, dtype=torch.int32)
        decoded: dict[str, Tensor] = {}
        for band in spec.bands:
            step = allowed(spec, band, one, decoded, one).step
            decoded[band] = torch.zeros_like(one)
            log_product += math.log2(step * spec.gain * 255 / 2) * one.numel()
    assert abs(log_product) < 1e-9 * dims


def test_integers_of_no_image_are_refused() -> None:
    """Wrong parity, wrong residue mod 4 and out of range: ValueError that names scale and band."""
    spec = spec_of("details", 1, 3)
    one = torch.tensor(1.0, dtype=torch.float64)
    for pqr, band in (
        ((1, 0, 0), "p"),
        ((0, 1, 0), "q"),
        ((0, 0, 2), "r"),
        ((8, 0, 0), "p"),
        ((4, 4, 0), "q"),
    ):
        z = torch.tensor(pqr, dtype=torch.int32).reshape(1, 3, 1, 1)
        with pytest.raises(ValueError, match=f"details1, band {band}.*belong to no image"):
            scale_log_prob(spec, torch.zeros(1, 3, 1, 1), one, one, z, cell(8))
    with pytest.raises(ValueError, match="base, band s"):
        scale_log_prob(spec_of("sum", 1, 3), torch.zeros(1, 1, 1, 1), one, one, cell(13), None)


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("tau", [1e-3, 0.05, 0.166, 0.5, 1.0, 3.0, 40.0, 1e3, 1e5])
def test_decoder_is_normalised(tau: float, step: int) -> None:
    """Law: for any z_0, within the range or 300 sigmas outside, the probabilities of all allowed
    integers sum to 1, never more, and none is zero as a logarithm."""
    for centre in (
        0.0,
        0.49,
        0.5,
        7.3,
        150.0 * step,
        300.0 * step,
        -300 * tau,
        300.0 * step + 300 * tau,
    ):
        total, logs = normaliser(centre, tau, 301, step)
        assert 1 - 1e-9 <= total <= 1 + 1e-12
        assert bool(torch.isfinite(logs).all())


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.3, 2.0, 30.0])
def test_clipped_window_only_loses(
    monkeypatch: pytest.MonkeyPatch, window: int, tau: float
) -> None:
    """Law: however few candidates the window holds, the sum stays at most 1 and no integer gets
    probability zero."""
    monkeypatch.setattr(lattice, "_MAX_WINDOW", window)
    for centre in (-5.0, 0.2, 99.7, 205.0):
        total, logs = normaliser(centre, tau, 201)
        assert 0 < total <= 1 + 1e-12
        assert bool(torch.isfinite(logs).all())


@pytest.mark.parametrize("tau", [0.1, 0.4, 5.0])
def test_decoder_is_the_gaussian_ratio(tau: float) -> None:
    """log P(z | z_0) is log of N(z_0; z, tau^2) over its sum over all candidates, computed
    outright; differences between two candidates do not depend on the window, which cannot know the
    truth."""
    for centre in (-3.3, 0.2, 17.6, 44.0):
        z = np.arange(0, 81, 2)
        expected = stats.norm.logpdf(centre, z, tau)
        expected = expected - np.logaddexp.reduce(expected)
        logs = normaliser(centre, tau, 41, 2)[1].flatten().numpy()
        np.testing.assert_allclose(logs, expected, rtol=1e-9, atol=1e-9)


def test_batch_mates_do_not_change_the_total_mass() -> None:
    """The window is shared by a batch; a coefficient's probabilities do not depend on what shares
    it beyond what was left out."""
    z, progression = line(101)
    centre, tau = (
        torch.full(z.shape, 40.2, dtype=torch.float64),
        torch.full(z.shape, 0.4, dtype=torch.float64),
    )
    alone = log_prob(centre, tau, z, progression)
    tau[-1] = 50.0
    assert torch.allclose(alone[:-1], log_prob(centre, tau, z, progression)[:-1], atol=1e-12)


@pytest.mark.parametrize(
    ("centre", "tau", "step"), [(3.4, 0.8, 1), (-2.0, 3.0, 2), (25.0, 4.0, 4), (5.0, 100.0, 1)]
)
def test_draws_follow_log_prob(centre: float, tau: float, step: int) -> None:
    """Law: `draw` is a sample of exp(log_prob) (chi-square, 40,000 draws, p > 1e-4), allowed
    always, the same for the same seed; the mode without a generator."""
    z, progression = line(9, step)
    many = Progression(*(v[:1].expand(40_000, 1, 1, 1) for v in progression[:2]), step)
    at, tau_ = (
        torch.full((40_000, 1, 1, 1), centre, dtype=torch.float64),
        torch.tensor(tau, dtype=torch.float64),
    )
    drawn = draw(at, tau_, many, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, draw(at, tau_, many, torch.Generator().manual_seed(1)))
    check_member(drawn, many, "drawn")
    probability = log_prob(at[:9], tau_, z, progression).exp().flatten().numpy()
    counts = np.bincount(drawn.flatten().numpy() // step, minlength=9)
    keep = probability * 40_000 > 5
    assert counts[~keep].sum() < 40
    expected = probability[keep] / probability[keep].sum() * counts[keep].sum()
    assert keep.sum() < 2 or stats.chisquare(counts[keep], expected).pvalue > 1e-4
    assert int(
        draw(at[:1], tau_, Progression(*(v[:1] for v in many[:2]), step), None)
    ) == step * int(probability.argmax())


@pytest.mark.parametrize("hierarchy", [Identity(), HaarWavelet(1), LaplacianPyramid(1)])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.5, 0.99])
def test_scales_are_normalised_jointly(hierarchy: HierarchicalMap, sigma: float) -> None:
    """Law: over all images that share the coarser scales, sum of P(z | z_0, coarser) over all bands
    jointly is 1."""
    images, generator = all_images(2, 4), torch.Generator().manual_seed(3)
    alpha, sigma_ = torch.tensor(math.sqrt(1 - sigma**2)), torch.tensor(sigma)
    for spec, (z, coarse) in zip(hierarchy.specs((1, 2, 2), 3), hierarchy.decompose(images, 3)):
        key = z.flatten(1) if coarse is None else torch.cat([coarse.flatten(1), z.flatten(1)], 1)
        unique = key.unique(dim=0)
        given = torch.zeros(len(unique), 1) if coarse is None else unique[:, :1]
        z = (unique if coarse is None else unique[:, 1:]).reshape(-1, *spec.shape)
        for scale in (1.0, 30.0):
            z_0 = (scale * torch.randn(1, *spec.shape, generator=generator)).expand(z.shape)
            logs = scale_log_prob(
                spec,
                z_0,
                alpha,
                sigma_,
                z,
                None if coarse is None else given.reshape(-1, 1, 1, 1).int(),
            )
            for group in given.unique(dim=0):
                mass = float(logs[(given == group).all(1)].exp().sum())
                assert 1 - 1e-9 <= mass <= 1 + 1e-12


@pytest.mark.parametrize("hierarchy", [HaarWavelet(2), LaplacianPyramid(2), Subsampling(2)])
def test_drawn_scales_belong_to_images(hierarchy: HierarchicalMap) -> None:
    """Law: whatever z_0 is, the integers drawn coarse to fine rebuild an image in range."""
    generator, coarse = torch.Generator().manual_seed(0), None
    for index, spec in enumerate(hierarchy.specs((3, 8, 8), 255)):
        z_0 = 3 * torch.randn(50, *spec.shape, generator=generator)
        z = scale_draw(spec, z_0, torch.tensor(0.9), torch.tensor(0.1), coarse, generator)
        assert bool(
            torch.isfinite(
                scale_log_prob(spec, z_0, torch.tensor(0.9), torch.tensor(0.1), z, coarse)
            ).all()
        )
        coarse = hierarchy.refine(index, coarse, z)
    assert coarse.shape == (50, 3, 8, 8) and int(coarse.min()) >= 0 and int(coarse.max()) <= 255
