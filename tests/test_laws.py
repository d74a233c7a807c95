"""The two laws of docs/likelihood.md, and what follows from them, on sources whose every image
can be listed.

Entropy: no expected code length lies below the entropy of its source; with the exact denoiser it
    equals it.
Kraft: the sum over all images of 2^-(code length) is at most 1, whatever the weights.

All figures are Monte-Carlo estimates with fixed seeds; every comparison is in standard errors, and
the standard errors are asserted to be small enough that the wrong accountings of its Sect. 4 would
fail.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pcdm_lib.diffusion import LinearSchedule, MonotoneSchedule, gamma_for_spacing
from pcdm_lib.experiments.studies.accounting import ACCOUNTINGS, Recount
from pcdm_lib.likelihood import (
    EnumeratedSource,
    Evaluation,
    evaluate,
    exact_cascade,
    example_source,
    kraft_sum,
)
from pcdm_lib.likelihood.enumerable import ising_source
from pcdm_lib.maps import HaarWavelet, Identity, LaplacianPyramid
from pcdm_lib.models import Cascade, ModelConfig, build

MAPS = {"vdm": Identity(), "wavelet": HaarWavelet(1), "laplacian": LaplacianPyramid(1)}
SOURCE = example_source()
ENTROPY = SOURCE.entropy_bits_per_dim


def proportional(source: EnumeratedSource, n: int) -> Tensor:
    """About n images, each as often as its probability says: their mean is the source's but for
    rounding."""
    return source.images.repeat_interleave((n * source.log_prob.exp()).round().long(), dim=0)


def measure(
    cascade: Cascade, n: int, repeats: int, steps: int | None = None, seed: int = 0
) -> Evaluation:
    """The bound on the example source; `bpd` with `se_noise` is an estimate of the expected code
    length."""
    images = proportional(SOURCE, n)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(99))
    return evaluate(
        cascade,
        images[order],
        repeats=repeats,
        times_per_image=1,
        seed=seed,
        steps=steps,
        batch_size=4096,
        dtype=torch.float64,
    )


def network(hierarchy: str, magnitude: float = 0.0, seed: int = 0, **changes) -> Cascade:
    """A tiny cascade on 2x2 images with 4 levels; `magnitude` is that of random numbers added to
    every weight."""
    config = ModelConfig(
        map=hierarchy,
        levels=0 if hierarchy == "vdm" else 1,
        image_shape=(1, 2, 2),
        max_value=3,
        channels=(8,),
        blocks=1,
        attention=False,
        gamma_max=(5.0,),
        **changes,
    )
    cascade = build(config, seed)
    for denoiser, (z, _) in zip(cascade.networks.values(), cascade.decompose(SOURCE.images)):
        denoiser.fit(z)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in cascade.networks.parameters():
            weight += magnitude * torch.randn(weight.shape, generator=generator)
    return cascade


def train(
    cascade: Cascade, images: Tensor, steps: int, batch: int, rate: float = 5e-3, seed: int = 0
) -> Cascade:
    """Adam with a learning rate that falls to zero, on images drawn from a list."""
    generator = torch.Generator().manual_seed(seed)
    for index, (_spec, (z, coarse)) in enumerate(zip(cascade.specs, cascade.decompose(images))):
        cascade.scales[index].denoiser.fit(z)
        optimiser = torch.optim.Adam(cascade.scales[index].denoiser.parameters(), lr=rate)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            rows = torch.randint(len(z), (batch,), generator=generator)
            loss = cascade.scales[index](
                z[rows], None if coarse is None else coarse[rows], generator
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return cascade


@functools.cache
def trained(hierarchy: str) -> Cascade:
    images = SOURCE.images[SOURCE.draw(20_000, torch.Generator().manual_seed(5))]
    return train(network(hierarchy), images, steps=150, batch=128).double()


def shuffled_schedule(gamma_min: float, gamma_max: float) -> MonotoneSchedule:
    """Bent far from linear between the same endpoints."""
    schedule = MonotoneSchedule(gamma_min, gamma_max, hidden=8)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        schedule.outer.copy_(torch.randn(8, generator=generator) - 1.5)
    return schedule.requires_grad_(False)


# ---------------------------------------------------------------- the entropy, with the exact
# denoiser


@functools.cache
def exact_measure(hierarchy: str, ratio: float) -> Evaluation:
    return measure(exact_cascade(SOURCE, MAPS[hierarchy], ratio), 65_536, 16)


def test_entropy_of_the_source() -> None:
    """The known number, 1.5485 bits a dimension."""
    assert pytest.approx(1.5485, abs=5e-5) == ENTROPY


@pytest.mark.parametrize("hierarchy", ["vdm", "wavelet"])
def test_exact_bound_is_the_entropy(hierarchy: str) -> None:
    """Law: with the exact denoiser, a decoder that is never in doubt (noise 0.05 of a pixel's
    spacing) and a negligible prior term,
    the bound is the entropy: within 4 standard errors of at most 0.005 bpd."""
    result = exact_measure(hierarchy, 0.05)
    print(hierarchy, result.bpd, result.se_noise)
    assert result.se_noise < 0.005
    assert abs(result.bpd - ENTROPY) < 4 * result.se_noise


@pytest.mark.parametrize(
    ("hierarchy", "expected", "exactly"), [("vdm", 1.557, 1.5503), ("wavelet", 1.560, 1.5533)]
)
def test_known_answers(hierarchy: str, expected: float, exactly: float) -> None:
    """docs/likelihood.md, Sect. 4, first two rows (good to 0.005 bpd), within 3 standard errors of
    at most 0.004 on top; and within 3 standard errors of the entropy plus the decoder's looseness,
    E[log P(z | z_0) under the source - the same under the decoder],
    summed over scales: good to 0.0003, from 40,000 draws of the difference."""
    result = exact_measure(hierarchy, 0.166)
    print(hierarchy, result.bpd, result.se_noise)
    assert result.se_noise < 0.004
    assert abs(result.bpd - expected) < 0.005 + 3 * result.se_noise
    assert abs(result.bpd - exactly) < 3 * result.se_noise


@pytest.mark.parametrize("levels", [1, 2])
def test_pyramid_equals_wavelet(levels: int) -> None:
    """Law: the pyramid has the wavelet's orthonormal coordinates, so with exact denoisers (one in
    either view) the same noise gives the same bound, term by term."""
    source, steps = (SOURCE, None) if levels == 1 else (ising_source(), 32)
    x = source.images[source.draw(24, torch.Generator().manual_seed(1))]
    bounds = [
        exact_cascade(source, m).bound(
            x, torch.Generator().manual_seed(3), steps, dtype=torch.float64
        )
        for m in (HaarWavelet(levels), LaplacianPyramid(levels))
    ]
    for a, b in zip(bounds[0][1:], bounds[1][1:]):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def entropy_nats(source: EnumeratedSource, integers: Tensor) -> float:
    """Entropy of a function of the image."""
    inverse = integers.flatten(1).unique(dim=0, return_inverse=True)[1]
    mass = torch.zeros(int(inverse.max()) + 1, dtype=torch.float64).index_add_(
        0, inverse, source.log_prob.exp()
    )
    return float(-(mass * mass.log()).sum())


def test_three_scales_of_ising_scale_by_scale() -> None:
    """Law (Eq. 15): on 4x4 binary images, each of the three scales costs its conditional entropy
    H(z_s | z_<s), and together the entropy; 4 standard errors, which are at most 0.15 nats of 8.8
    for the whole image."""
    source, hierarchy = ising_source(coupling=0.3), HaarWavelet(2)
    schedules = [
        LinearSchedule(gamma_for_spacing(spec, 0.1), 7.0) for spec in hierarchy.specs((1, 4, 4), 1)
    ]
    cascade = exact_cascade(source, hierarchy, schedule=schedules)
    pairs = hierarchy.decompose(source.images, 1)
    known = [
        0.0,
        *(entropy_nats(source, coarse) for _, coarse in pairs[1:]),
        entropy_nats(source, source.images),
    ]
    generator, total, variance = torch.Generator().manual_seed(0), 0.0, 0.0
    for index in range(3):
        x = [source.images[source.draw(1024, generator)] for _ in range(24)]
        means = torch.stack(
            [
                cascade.bound(b, generator, scales=[index], dtype=torch.float64).total.mean()
                for b in x
            ]
        )
        mean, error = float(means.mean()), float(means.std() / math.sqrt(len(x)))
        print(cascade.specs[index].name, mean, error, known[index + 1] - known[index])
        assert abs(mean - (known[index + 1] - known[index])) < 4 * error
        total, variance = total + mean, variance + error**2
    print(total, math.sqrt(variance), known[-1])
    assert math.sqrt(variance) < 0.15
    assert abs(total - known[-1]) < 4 * math.sqrt(variance)


# ---------------------------------------------------------------- Kraft's sum


@pytest.mark.parametrize(
    ("hierarchy", "draws"), [("vdm", 1200), ("wavelet", 1000), ("laplacian", 250)]
)
def test_kraft_exact(hierarchy: str, draws: int) -> None:
    """Law: with the exact denoiser the sum is about 1 (a little less, from the decoder's
    looseness), never above by 3 standard errors. (The pyramid's terms are the wavelet's, see above;
    so fewer draws.)"""
    total, error = kraft_sum(exact_cascade(SOURCE, MAPS[hierarchy]), SOURCE, draws)
    print(hierarchy, total, error)
    assert error < (0.04 if draws >= 1000 else 0.08)
    assert 0.9 - 3 * error < total < 1 + 3 * error


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("magnitude", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("hierarchy", [*MAPS, "standard"])
def test_kraft_random_weights(hierarchy: str, magnitude: float, steps: int | None) -> None:
    """Law: the sum is at most 1 (+ 3 standard errors) for weights that were never trained, in
    continuous time and in 6 steps."""
    total, error = kraft_sum(network(hierarchy, magnitude).double(), SOURCE, draws=60, steps=steps)
    print(hierarchy, magnitude, steps, total, error)
    assert error < 0.15
    assert total <= 1 + 3 * error


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_laws_hold_after_training(hierarchy: str) -> None:
    """Law: a network trained on the source stays above its entropy and below Kraft's 1; it has
    learned something (2 bits a dimension is what knowing nothing costs), so that the sum is close
    enough to 1 for the test to have teeth."""
    total, error = kraft_sum(trained(hierarchy), SOURCE, draws=300)
    result = measure(trained(hierarchy), 1024, 16)
    print(hierarchy, "Kraft", total, error, "bpd", result.bpd, result.se_noise)
    assert error < 0.1 and result.se_noise < 0.04
    assert 0.4 < total <= 1 + 3 * error
    assert ENTROPY - 3 * result.se_noise < result.bpd < 2.0


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_laws_hold_in_steps(hierarchy: str) -> None:
    """Law: the same network as a model of 60 steps pays more, and keeps both laws."""
    total, error = kraft_sum(trained(hierarchy), SOURCE, draws=120, steps=60)
    result = measure(trained(hierarchy), 1024, 4, steps=60)
    print(hierarchy, "Kraft", total, error, "bpd", result.bpd, result.se_noise)
    assert error < 0.15 and 0.1 < total <= 1 + 3 * error
    assert ENTROPY - 3 * result.se_noise < result.bpd < 2.3


# ---------------------------------------------------------------- wrong accountings are rejected


@pytest.mark.parametrize(
    ("accounting", "bpd", "kraft", "draws"),
    [("coarse clean", 1.444, 1.335, 1500), ("both", 0.849, 7.15, 400)],
)
def test_wrong_accountings_are_rejected(
    accounting: str, bpd: float, kraft: float, draws: int
) -> None:
    """docs/likelihood.md, Sect. 4, last two rows: the same checks that pass above fail here by more
    than 5 standard errors, at the figures that need no drawn noise levels (`exact_ledger`,
    tests/test_accounting.py) within 4."""
    cascade = Recount(exact_cascade(SOURCE, MAPS["wavelet"]), ACCOUNTINGS[accounting])
    result, (total, error) = measure(cascade, 16_384, 10), kraft_sum(cascade, SOURCE, draws)
    print(accounting, result.bpd, result.se_noise, total, error)
    assert result.bpd < ENTROPY - 5 * result.se_noise and total > 1 + 5 * error
    assert result.se_noise < 0.01 and abs(result.bpd - bpd) < 4 * result.se_noise + 0.001
    assert error < 0.04 * kraft and abs(total - kraft) < 4 * error


# ---------------------------------------------------------------- uniform noise


@pytest.mark.parametrize("hierarchy", ["wavelet", "laplacian", "vdm"])
def test_uniform_noise_costs_eight_bits(hierarchy: str) -> None:
    """Law: on independent uniform 8-bit noise no model goes below 8.0 bpd. A net of this size
    starts at 8.25, what Gaussians of the right variance cost, and learns little in 120 steps; not
    knowing s+p+q+r = 0 (mod 4) would cost the wavelet another 1/4."""
    config = ModelConfig(
        map=hierarchy,
        levels=0 if hierarchy == "vdm" else 1,
        image_shape=(1, 4, 4),
        channels=(8,),
        blocks=1,
        attention=False,
    )
    noise = torch.randint(0, 256, (6144, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    cascade = train(build(config), noise[4096:], steps=120, batch=64)
    result = evaluate(cascade, noise[:4096], repeats=8, times_per_image=1, batch_size=1024)
    print(hierarchy, result.bpd, result.se_noise, result.se_images)
    assert result.se_noise < 0.03
    assert 8.0 - 3 * result.se_noise < result.bpd < 8.4


# ---------------------------------------------------------------- schedules and steps


@pytest.mark.parametrize("model", ["exact", "random"])
def test_interior_of_the_schedule_does_not_matter(model: str) -> None:
    """Law: in continuous time two schedules with the same endpoints have the same expected bound (4
    standard errors), scale by scale, though their single draws differ."""
    results = []
    for make in (None, shuffled_schedule):
        cascade = (
            exact_cascade(SOURCE, MAPS["wavelet"])
            if model == "exact"
            else network("wavelet", 0.05).double()
        )
        if make is not None:
            ends = [(float(s.gamma_min), float(s.gamma_max)) for s in cascade.schedules]
            cascade = cascade.with_schedules([make(*e).double() for e in ends])
        results.append(measure(cascade, *((32_768, 16) if model == "exact" else (1024, 32))))
    # (2, repeats, scales)
    means = torch.stack([torch.from_numpy(r.parts).sum(-1).mean(0) for r in results])
    error = (means.var(1).sum(0) / means.shape[1]).sqrt()
    print(model, means.mean(1), error)
    assert float(error.max()) < (0.01 if model == "exact" else 0.03)
    assert bool(((means[0] - means[1]).mean(0).abs() < 4 * error).all())
    spread = [r.parts.sum(axis=(2, 3)).std() for r in results]
    assert abs(spread[0] / spread[1] - 1) > 0.02  # the schedules are different indeed


def test_steps_fall_to_continuous_time() -> None:
    """Law: the T-step bound falls with T, to the continuous-time bound (T = 256: within 0.03 bpd
    and 4 standard errors)."""
    cascade = exact_cascade(SOURCE, MAPS["wavelet"])
    results = [measure(cascade, 16_384, 8, steps) for steps in (4, 16, 64, 256)] + [
        exact_measure("wavelet", 0.166)
    ]
    figures = [(r.bpd, r.se_noise) for r in results]
    print(figures)
    for (coarse, a), (fine, b) in zip(figures, figures[1:]):
        assert coarse > fine - 3 * math.hypot(a, b)
    assert figures[0][0] > figures[1][0] + 0.1 and figures[1][0] > figures[2][0] + 0.02
    assert abs(figures[3][0] - figures[4][0]) < 0.03 + 4 * math.hypot(figures[3][1], figures[4][1])


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_samples_follow_the_source(hierarchy: str) -> None:
    """Law: ancestral sampling with the exact denoiser and 256 steps draws from the source
    (chi-square over images, those expected fewer than 8 times merged, 4,000 samples, p > 1e-3)."""
    n, cascade = 4000, exact_cascade(SOURCE, MAPS[hierarchy])
    images = cascade.sample(
        n, 256, torch.Generator().manual_seed(0), dtype=torch.float64
    ).images.flatten(1)
    codes = (images * torch.tensor([1, 4, 16, 64])).sum(1)  # the order of `all_images`
    counts, expected = torch.bincount(codes, minlength=256).double(), n * SOURCE.log_prob.exp()
    common = expected >= 8
    observed, wanted = (
        torch.cat([v[common], v[~common].sum()[None]]).numpy() for v in (counts, expected)
    )
    result = stats.chisquare(observed, wanted * observed.sum() / wanted.sum())
    print(hierarchy, len(observed), result)
    assert len(observed) > 30 and result.pvalue > 1e-3
