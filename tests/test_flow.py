"""The probability flow: Eq. 6 where everything is known in closed form, and the same number as the
bound's on the example source.

Monte-Carlo figures have fixed seeds; every comparison is in standard errors, which are asserted to
be small.
"""

from __future__ import annotations

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcdm_lib.diffusion import Denoiser, LinearSchedule, alpha_sigma
from pcdm_lib.likelihood import EnumeratedSource, exact_cascade, example_source, paired_difference
from pcdm_lib.likelihood.flow import (
    FIXED,
    FLOW_TERMS,
    MAX_EXACT,
    FlowEvaluation,
    FlowSettings,
    _Field,
    cascade_flow,
    draw_noise,
    evaluate_flow,
    flow_log_density,
    scale_flow,
)
from pcdm_lib.likelihood.three_ways import compare_likelihoods
from pcdm_lib.maps import HaarWavelet, HierarchicalMap, Identity, LaplacianPyramid
from pcdm_lib.models import Cascade, ModelConfig, build

MAPS = {"vdm": Identity(), "wavelet": HaarWavelet(1), "laplacian": LaplacianPyramid(1)}
SOURCE = example_source()
RANGE = (-8.0, 6.0)


def log_normal(z: Tensor) -> Tensor:
    flat = z.double().flatten(1)
    return -(flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi)) / 2


class GaussianSource:
    """y ~ N(mean, U diag(spread) U^T) in four coordinates, shape (1, 2, 2); its denoiser is linear,
    and its flow maps z_0 to z_1 linearly."""

    def __init__(self, seed: int = 0, rotated: bool = True):
        generator = torch.Generator().manual_seed(seed)
        self.mean = 0.5 * torch.randn(4, generator=generator, dtype=torch.float64)
        self.spread = torch.tensor([1.5, 0.5, 0.1, 0.01], dtype=torch.float64)
        rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
        self.axes = rotation if rotated else torch.eye(4, dtype=torch.float64)
        self.seen: list[float] = []

    def __call__(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        self.seen.append(float(gamma[0]))
        alpha, sigma = alpha_sigma(gamma.double().reshape(-1, 1))
        along = (z_t.double().flatten(1) - alpha * self.mean) @ self.axes
        return (
            (sigma * along / (alpha**2 * self.spread + sigma**2) @ self.axes.T)
            .reshape(z_t.shape)
            .to(z_t.dtype)
        )

    def draw(self, n: int, gamma: float, seed: int = 1) -> Tensor:
        alpha, sigma = alpha_sigma(torch.tensor(gamma, dtype=torch.float64))
        white = torch.randn(
            n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        return (
            alpha * self.mean + (white * (alpha**2 * self.spread + sigma**2).sqrt()) @ self.axes.T
        ).reshape(n, 1, 2, 2)

    def flow(self, z_0: Tensor) -> tuple[Tensor, Tensor]:
        """z_1, and the integral of dv/dz over gamma: the logarithm of the matrix that carries z_0 -
        alpha_0 mean to z_1 - alpha_1 mean."""
        (alpha_0, sigma_0), (alpha_1, sigma_1) = (
            alpha_sigma(torch.tensor(g, dtype=torch.float64)) for g in RANGE
        )
        log_gain = (
            torch.log(
                (alpha_1**2 * self.spread + sigma_1**2) / (alpha_0**2 * self.spread + sigma_0**2)
            )
            / 2
        )
        moved = (z_0.flatten(1) - alpha_0 * self.mean) @ self.axes * log_gain.exp() @ self.axes.T
        return (alpha_1 * self.mean + moved).reshape(z_0.shape), self.axes @ torch.diag(
            log_gain
        ) @ self.axes.T


def network(hierarchy: str, magnitude: float = 0.3, seed: int = 0) -> Cascade:
    """A tiny cascade on 2x2 images with 4 levels, random numbers added to every weight, in
    float64."""
    config = ModelConfig(
        map=hierarchy,
        levels=0 if hierarchy == "vdm" else 1,
        image_shape=(1, 2, 2),
        max_value=3,
        channels=(8,),
        blocks=1,
        attention=False,
        gamma_max=(5.0,),
    )
    cascade = build(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for denoiser, (z, _) in zip(cascade.networks.values(), cascade.decompose(SOURCE.images)):
            denoiser.fit(z)
        for weight in cascade.networks.parameters():
            weight += magnitude * torch.randn(weight.shape, generator=generator)
    return cascade.double()


def trace(
    denoiser: Denoiser,
    z: Tensor,
    gamma: float,
    coarse: Tensor | None,
    settings: FlowSettings,
    probes: Tensor | None = None,
) -> Tensor:
    """tr(d eps_hat / dz) as the solver's right-hand side has it, (N,)."""
    g = torch.tensor(gamma, dtype=torch.float64)
    sigma = alpha_sigma(g)[1]
    return z[0].numel() * (
        2 / sigma * _Field(denoiser, coarse, settings, probes)(g, (z, z.new_zeros(len(z))))[1]
        + sigma
    )


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    "settings",
    [
        FlowSettings("dopri5", 1e-8, 1e-8),
        FlowSettings("dopri8", 1e-9, 1e-9),
        FlowSettings("bosh3", 1e-7, 1e-7),
        FlowSettings("rk4", steps=150),
        FlowSettings("heun3", steps=400),
    ],
    ids=lambda s: s.method,
)
def test_gaussian_source(settings: FlowSettings) -> None:
    """Eq. 6 with the linear denoiser of a Gaussian source: z_1 and log p_0 by hand, to 1e-5 nats;
    no gamma beyond the endpoints is asked for."""
    source = GaussianSource()
    z_0 = source.draw(6, RANGE[0])
    found = flow_log_density(
        source, RANGE, z_0, None, FlowSettings(**{**vars(settings), "divergence": "exact"})
    )
    z_1, log_map = source.flow(z_0)
    assert torch.allclose(found.z_1, z_1, atol=1e-5)
    assert torch.allclose(found.log_prob, log_normal(z_1) + torch.trace(log_map), rtol=0, atol=1e-5)
    assert found.log_prob.dtype == torch.float64 and found.evaluations == len(source.seen)
    assert RANGE[0] <= min(source.seen) and max(source.seen) <= RANGE[1]
    if settings.method in FIXED:
        assert found.evaluations == {"rk4": 4, "heun3": 3}[settings.method] * settings.steps


def test_constant_denoiser() -> None:
    """eps_hat = 0 by hand: z shrinks by alpha_1 / alpha_0, which has no noise and no gradient to
    take."""
    z_0, log_ratio = (
        GaussianSource().draw(3, RANGE[0]),
        math.log(math.sqrt((1 + math.exp(RANGE[0])) / (1 + math.exp(RANGE[1])))),
    )
    noise = torch.ones(1, 3, 1, 2, 2)
    for factor, divergence in itertools.product(
        (torch.tensor(0.0), nn.Parameter(torch.tensor(0.0))), ("exact", "hutchinson")
    ):
        settings = FlowSettings(rtol=1e-8, atol=1e-8, divergence=divergence)
        found = flow_log_density(
            lambda z, *_, factor=factor: factor * torch.ones_like(z),
            RANGE,
            z_0,
            None,
            settings,
            noise,
        )
        assert torch.allclose(
            found.log_prob, log_normal(z_0 * math.exp(log_ratio)) + 4 * log_ratio, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_with_fixed_probes(kind: str) -> None:
    """Law: with the probe e held along the trajectory the integral is e^T L e exactly, L the
    integral of dv/dz (another probe at every step would give another number); over 3,000 probes its
    mean is the trace (4 standard errors) and its variance that of the kind (10 %)."""
    source, count = GaussianSource(), 3000
    z_0 = source.draw(1, RANGE[0]).expand(count, -1, -1, -1)
    settings = FlowSettings(rtol=1e-7, atol=1e-7, probe_kind=kind)
    spec = Identity().specs((1, 2, 2), 3)[0]
    probes = draw_noise([spec], count, settings, torch.Generator().manual_seed(0))[0].probes
    found = flow_log_density(source, RANGE, z_0, None, settings, probes).log_prob
    z_1, log_map = source.flow(z_0[:1])
    e = probes[0].flatten(1)
    assert torch.allclose(found, log_normal(z_1) + (e @ log_map * e).sum(1), atol=1e-4)
    exact = float(log_normal(z_1) + torch.trace(log_map))
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(count)
    off_diagonal = log_map - torch.diag(log_map.diagonal())
    variance = 2 * float((log_map if kind == "gaussian" else off_diagonal).square().sum())
    assert float(found.var()) == pytest.approx(variance, rel=0.1)
    several = flow_log_density(
        source, RANGE, z_0[:750], None, settings, probes[0].reshape(4, 750, 1, 2, 2)
    ).log_prob
    assert torch.allclose(several, found.reshape(4, 750).mean(0), atol=1e-4)


def test_signs_are_exact_on_a_diagonal() -> None:
    """One Rademacher probe gives the trace of a diagonal Jacobian without noise."""
    source = GaussianSource(rotated=False)
    z_0, probes = (
        source.draw(5, RANGE[0]),
        2.0 * torch.randint(2, (1, 5, 1, 2, 2), generator=torch.Generator().manual_seed(2)) - 1,
    )
    settings = {"rtol": 1e-7, "atol": 1e-7}
    pair = [
        flow_log_density(
            source, RANGE, z_0, None, FlowSettings(divergence=d, **settings), probes
        ).log_prob
        for d in ("exact", "hutchinson")
    ]
    assert torch.allclose(*pair, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the Jacobian


@pytest.mark.parametrize("model", ["network", "exact"])
@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_trace_against_finite_differences(hierarchy: str, model: str) -> None:
    """The exact trace is that of central differences, for a network in its preconditioning (with
    lattices and waves) and for the exact denoiser; and it is the mean of all 16 sign probes'
    estimates."""
    cascade = network(hierarchy) if model == "network" else exact_cascade(SOURCE, MAPS[hierarchy])
    generator = torch.Generator().manual_seed(0)
    for index, (spec, (z, coarse)) in enumerate(
        zip(cascade.specs, cascade.decompose(SOURCE.images[[3, 77, 150, 201]]))
    ):
        denoiser, step = cascade.scales[index].denoiser, 1e-5
        for gamma in (-3.5, -1.0, 2.0):
            alpha, sigma = alpha_sigma(torch.tensor(gamma, dtype=torch.float64))
            z_t = alpha * spec.to_float(z, torch.float64) + sigma * torch.randn(
                z.shape, generator=generator, dtype=torch.float64
            )
            g, expected = (
                torch.full((len(z),), gamma, dtype=torch.float64),
                torch.zeros(len(z), dtype=torch.float64),
            )
            with torch.no_grad():
                for i in range(spec.dims):
                    shift = torch.zeros(spec.dims, dtype=torch.float64)
                    shift[i] = step
                    up, down = (
                        denoiser(z_t + s * shift.reshape(spec.shape), g, coarse).flatten(1)[:, i]
                        for s in (1, -1)
                    )
                    expected += (up - down) / (2 * step)
            found = trace(denoiser, z_t, gamma, coarse, FlowSettings(divergence="exact"))
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
            signs = torch.cartesian_prod(
                *[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * spec.dims
            ).reshape(-1, 1, *spec.shape)
            mean = trace(
                denoiser, z_t, gamma, coarse, FlowSettings(), signs.expand(-1, len(z), -1, -1, -1)
            )
            assert torch.allclose(mean, found, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- the example source, exact
# denoiser


def mixture_log_density(
    source: EnumeratedSource,
    hierarchy: HierarchicalMap,
    index: int,
    z: Tensor,
    coarse: Tensor | None,
    gamma: float,
) -> Tensor:
    """log q(z_gamma | coarse) under the source: a mixture of one Gaussian an image that has these
    coarser integers."""
    spec = hierarchy.specs(source.image_shape, source.max_value)[index]
    integers, coarser = hierarchy.decompose(source.images, source.max_value)[index]
    alpha, sigma = alpha_sigma(torch.tensor(gamma, dtype=torch.float64))
    distance = torch.cdist(
        z.double().flatten(1), alpha * spec.to_float(integers, torch.float64).flatten(1)
    ).square()
    weight = source.log_prob.expand(len(z), -1)
    if coarse is not None:
        fits = (coarse.flatten(1)[:, None] == coarser.flatten(1)[None]).all(-1)
        weight = torch.log_softmax(weight.masked_fill(~fits, -torch.inf), dim=1)
    return torch.logsumexp(weight - distance / (2 * sigma**2), dim=1) - spec.dims * (
        math.log(2 * math.pi) / 2 + torch.log(sigma)
    )


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_flow_density_is_the_mixture_of_the_source(hierarchy: str) -> None:
    """Law: with the exact denoiser the flow carries the source's own noisy density, point by point
    (1e-4 nats), for every scale given its coarser integers: log p_0(z_0) is the mixture's, but for
    the mixture being N(0, I) at gamma_1 only nearly (0.05 nats)."""
    cascade = exact_cascade(SOURCE, MAPS[hierarchy])
    rows = SOURCE.draw(40, torch.Generator().manual_seed(3))
    noises = draw_noise(cascade.specs, len(rows), FlowSettings(), torch.Generator().manual_seed(4))
    for index, (spec, (z, coarse)) in enumerate(
        zip(cascade.specs, cascade.decompose(SOURCE.images[rows]))
    ):
        gammas = (
            float(cascade.schedules[index].gamma_min),
            float(cascade.schedules[index].gamma_max),
        )
        alpha, sigma = alpha_sigma(torch.tensor(gammas[0], dtype=torch.float64))
        z_0 = alpha * spec.to_float(z, torch.float64) + sigma * noises[index].eps_0
        found = flow_log_density(
            cascade.scales[index].denoiser,
            gammas,
            z_0,
            coarse,
            FlowSettings(rtol=1e-7, atol=1e-7, divergence="exact"),
        )
        start, end = (
            mixture_log_density(SOURCE, MAPS[hierarchy], index, v, coarse, g)
            for v, g in zip((z_0, found.z_1), gammas)
        )
        print(hierarchy, spec.name, float((found.log_prob - start).abs().max()))
        assert torch.allclose(
            found.log_prob - log_normal(found.z_1) + end, start, rtol=0, atol=1e-4
        )
        assert torch.allclose(found.log_prob, start, rtol=0, atol=0.05)


EXACT = FlowSettings(rtol=1e-4, atol=1e-4, divergence="exact")
HUTCHINSON = FlowSettings(rtol=1e-4, atol=1e-4, probes=8)


@functools.cache
def enumerated(hierarchy: str, settings: FlowSettings, repeats: int) -> FlowEvaluation:
    return evaluate_flow(
        exact_cascade(SOURCE, MAPS[hierarchy]),
        SOURCE.images,
        settings,
        repeats=repeats,
        batch_size=256,
    )


def expectation(result: FlowEvaluation) -> tuple[float, float]:
    """Expected bits per dimension over the source, from all its images, and the standard error of
    the noise."""
    totals = SOURCE.log_prob.exp().numpy() @ result.parts.sum(axis=(2, 3))
    return float(totals.mean()), float(totals.std(ddof=1) / math.sqrt(len(totals)))


@pytest.mark.parametrize(
    ("hierarchy", "expected", "exactly"), [("vdm", 1.557, 1.5503), ("wavelet", 1.560, 1.5533)]
)
def test_known_answers(hierarchy: str, expected: float, exactly: float) -> None:
    """docs/likelihood.md, Sect. 4 and 5: the flow reads what the bound reads, by enumeration of all
    images. With the exact trace the noise of an estimate all but cancels, so it is that of
    test_laws.py (entropy plus the decoder's looseness) within 3 standard errors of at most 0.0015
    bpd, plus 0.001 for the tolerance and for how well that is known; with Hutchinson's estimator
    within 3 of at most 0.009."""
    result = enumerated(hierarchy, EXACT, 5)
    bpd, error = expectation(result)
    print(hierarchy, "exact", bpd, error, result.evaluations_per_scale)
    assert error < 0.0015
    assert abs(bpd - exactly) < 0.001 + 3 * error and abs(bpd - expected) < 0.008 + 3 * error
    noisy, error = expectation(enumerated(hierarchy, HUTCHINSON, 8))
    print(hierarchy, "hutchinson", noisy, error)
    assert error < 0.009
    assert abs(noisy - exactly) < 0.001 + 3 * error


def kraft(result: FlowEvaluation) -> tuple[float, float]:
    """Kraft's sum over all images from independent repeats, with its standard error (as
    evaluate.kraft_sum)."""
    nats = torch.from_numpy(result.parts.sum(axis=(2, 3))) * 4 * math.log(2)
    mass, variance = torch.exp(-nats.mean(1)), nats.var(1) / nats.shape[1]
    return float((mass * torch.exp(-variance / 2)).sum()), float((mass**2 * variance).sum().sqrt())


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_kraft_exact(hierarchy: str) -> None:
    """Law: with the exact denoiser the sum is about 1, a little less from the decoder's looseness,
    and not above by 3 standard errors of at most 0.01 (the wrong accountings of Sect. 4 sum to 1.41
    and 7.2)."""
    total, error = kraft(enumerated(hierarchy, EXACT, 5 if hierarchy != "laplacian" else 3))
    print(hierarchy, total, error)
    assert error < 0.01
    assert 0.98 < total < 1 + 3 * error


@pytest.mark.parametrize("hierarchy", ["vdm", "laplacian"])
def test_kraft_random_weights(hierarchy: str) -> None:
    """Law: at most 1 for weights that were never trained (3 standard errors of at most 0.02); it is
    far enough above 0 to have teeth."""
    settings = FlowSettings(rtol=1e-3, atol=1e-3, divergence="exact")
    result = evaluate_flow(
        network(hierarchy, 0.05), SOURCE.images, settings, repeats=3, batch_size=256
    )
    total, error = kraft(result)
    print(hierarchy, total, error, result.evaluations_per_scale)
    assert error < 0.02
    assert 0.5 < total <= 1 + 3 * error


@pytest.mark.parametrize("hierarchy", list(MAPS))
def test_three_ways_agree(hierarchy: str) -> None:
    """THE law (docs/likelihood.md, Sect. 5): continuous-time bound, T-step bound and flow are one
    number with the exact denoiser, on the same images within 3 standard errors of at most 0.01 bpd
    of the paired difference (the wrong accountings are off by 0.12 and 0.7); that of T = 2048 is
    above by 0.002 to 0.008, well known because both bounds share their noise."""
    images = SOURCE.images.repeat_interleave((512 * SOURCE.log_prob.exp()).round().long(), dim=0)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(9))]
    table = compare_likelihoods(
        exact_cascade(SOURCE, MAPS[hierarchy]),
        images,
        steps=(2048,),
        flows=(EXACT, HUTCHINSON),
        repeats=4,
        times_per_image=64,
        batch_size=2048,
    )
    print(hierarchy, len(images), table, sep="\n")
    assert [w.name for w in table.ways] == [
        "continuous time",
        "T = 2048",
        "flow, exact",
        "flow, hutchinson",
    ]
    assert table["continuous time"].difference == 0
    step = table["T = 2048"]
    assert step.se_difference < 0.001 and 0.002 < step.difference < 0.008
    for name in ("flow, exact", "flow, hutchinson"):
        assert 0 < table[name].se_difference < 0.01
        assert abs(table[name].difference) < 3 * table[name].se_difference


def test_pyramid_equals_wavelet() -> None:
    """Law: the pyramid has the wavelet's orthonormal coordinates, so the same noise gives the same
    terms (to the tolerance, here 1e-6)."""
    bounds = [
        cascade_flow(
            exact_cascade(SOURCE, MAPS[m]),
            SOURCE.images[::16],
            torch.Generator().manual_seed(0),
            FlowSettings(rtol=1e-6, atol=1e-6, divergence="exact"),
        )
        for m in ("wavelet", "laplacian")
    ]
    for a, b in zip(bounds[0][1:4], bounds[1][1:4]):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- the solver


@pytest.mark.parametrize("kind", ["exact", "network"])
def test_tolerance(kind: str) -> None:
    """Tightening the tolerance tenfold from 1e-3, 1e-4, 1e-5 changes the images' figures in the
    mean by no more than five times as much in bpd, and takes more evaluations. (The network, whose
    embedding of the noise level oscillates fast, is not followed below 1e-5.)"""
    model, results = (
        exact_cascade(SOURCE, MAPS["wavelet"]) if kind == "exact" else network("wavelet", 0.02),
        [],
    )
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6)[: 4 if kind == "exact" else 3]:
        settings = FlowSettings(rtol=tolerance, atol=tolerance, divergence="exact")
        results.append(evaluate_flow(model, SOURCE.images[::16], settings, repeats=1))
    print([(r.bpd, r.evaluations_per_scale) for r in results])
    for loose, tight, allowed in zip(results, results[1:], (1e-3, 1e-4, 1e-5)):
        print(kind, allowed, np.abs(loose.per_image - tight.per_image).mean())
        assert np.abs(loose.per_image - tight.per_image).mean() < 5 * allowed
        assert sum(tight.evaluations_per_scale.values()) > sum(loose.evaluations_per_scale.values())
    assert all(
        results[-1].evaluations_per_scale[s] > results[0].evaluations_per_scale[s]
        for s in model.map.names()
    )


def test_error_is_that_of_the_worst_image() -> None:
    """An image far out is followed as well among 63 at rest as alone, where a mean over the batch
    would have let an 8th of its error pass."""
    source = GaussianSource()
    rest = torch.full((63, 1, 2, 2), 0.0, dtype=torch.float64) + alpha_sigma(
        torch.tensor(RANGE[0])
    )[0] * source.mean.reshape(1, 2, 2)
    far = rest[:1] + 3.0
    settings = FlowSettings(rtol=1e-4, atol=1e-4, divergence="exact")
    alone, among = (
        flow_log_density(source, RANGE, z, None, settings) for z in (far, torch.cat([far, rest]))
    )
    assert among.evaluations >= alone.evaluations
    exact = source.flow(far)[0]
    errors = [float((d.z_1[:1] - exact).abs().max()) for d in (alone, among)]
    print(errors)
    assert errors[1] < 2 * errors[0] + 1e-6


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_batches_change_nothing(divergence: str) -> None:
    """An image's noise does not depend on the batches: fixed steps give the same figures to
    rounding, adaptive ones to the tolerance (1e-6: to 1e-4 bpd for the worst of 18 draws)."""
    x = SOURCE.images[20:29]
    for model, settings, allowed in (
        (network("wavelet"), FlowSettings("rk4", steps=30, divergence=divergence), 1e-10),
        (
            exact_cascade(SOURCE, MAPS["wavelet"]),
            FlowSettings(rtol=1e-6, atol=1e-6, divergence=divergence),
            1e-4,
        ),
    ):
        results = [evaluate_flow(model, x, settings, repeats=2, batch_size=size) for size in (9, 5)]
        print(settings, np.abs(results[0].parts - results[1].parts).max())
        assert np.allclose(results[0].parts, results[1].parts, rtol=0, atol=allowed)
        assert not np.array_equal(results[0].parts[:, 0], results[0].parts[:, 1])


def test_float32_close_to_float64() -> None:
    """The noise is drawn in float64 whatever the dtype, so both follow the same trajectories: at
    1e-4 they differ by 1e-3 bpd at most."""
    settings = FlowSettings(rtol=1e-4, atol=1e-4)
    double = evaluate_flow(network("wavelet", 0.02), SOURCE.images[::16], settings)
    single = evaluate_flow(network("wavelet", 0.02).float(), SOURCE.images[::16], settings)
    assert (double.dtype, single.dtype) == ("float64", "float32")
    assert np.abs(double.per_image - single.per_image).max() < 1e-3
    mean, error = paired_difference(double, single)
    assert abs(mean) < 1e-3 and error < 1e-3


class Shrink(nn.Module):
    """A linear denoiser with dropout, so that modes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.tensor(0.25)), nn.Dropout(0.5)

    def forward(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        sigma2 = torch.sigmoid(gamma).reshape(-1, 1, 1, 1)
        return self.dropout(sigma2.sqrt() / (self.weight * (1 - sigma2) + sigma2) * z_t)


def shrinking(learn_endpoints: bool = False) -> Cascade:
    return Cascade(
        HaarWavelet(1), (1, 4, 4), [Shrink(), Shrink()], LinearSchedule(-10.0, 4.0, learn_endpoints)
    )


def images(n: int) -> Tensor:
    return torch.randint(
        60, 200, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_reproducible_whatever_the_state() -> None:
    """The same seed gives the same figures, under no_grad too; the mode of training is restored,
    dropout is off meanwhile; neither the global generator nor gradients are touched."""
    model, x, state = shrinking(learn_endpoints=True), images(5), torch.get_rng_state()
    first = evaluate_flow(model.train(), x, seed=3)
    assert model.training and model.networks["base"].dropout.training
    with torch.no_grad():
        second = evaluate_flow(model.eval(), x, seed=3)
    assert not model.training and torch.is_grad_enabled()
    assert np.array_equal(first.parts, second.parts) and np.array_equal(
        first.evaluations, second.evaluations
    )
    assert torch.equal(torch.get_rng_state(), state) and all(
        p.grad is None for p in model.parameters()
    )
    assert not np.array_equal(first.parts, evaluate_flow(model, x, seed=4).parts)
    bound = cascade_flow(model, x, torch.Generator().manual_seed(0))
    assert not bound.total.requires_grad and bound.per_scale.shape == (5, 2)
    one = cascade_flow(model, x, torch.Generator().manual_seed(0), scales=[1])
    assert one.names == ("details1",) and one.decoder.shape == (5, 1)


def test_one_scale_is_a_part_of_the_cascade() -> None:
    """`scale_flow` with the cascade's noise gives its column."""
    model, x = shrinking().eval(), images(3)
    bound = cascade_flow(model, x, torch.Generator().manual_seed(1))
    noises = draw_noise(model.specs, 3, FlowSettings(), torch.Generator().manual_seed(1))
    for index, (pair, noise) in enumerate(zip(model.decompose(x), noises)):
        terms = scale_flow(
            model.scales[index],
            *pair,
            noise,
            dtype=torch.float32,
        )
        assert (
            torch.equal(terms.total, bound.per_scale[:, index])
            and terms.evaluations == bound.evaluations[index]
        )


def test_table_and_dict() -> None:
    """The table's shares sum to bpd; the dictionary is JSON and says how the flow was solved; so
    does the text."""
    result = evaluate_flow(
        shrinking(), images(4), FlowSettings("rk4", steps=20), weights="EMA", seed=4
    )
    table = result.table()
    assert list(table) == ["base", "details1", "total"]
    for row in table.values():
        assert row["total"] == pytest.approx(sum(row[t] for t in FLOW_TERMS))
    assert table["total"]["total"] == pytest.approx(result.bpd)
    assert result.evaluations_per_scale == {"base": 80.0, "details1": 80.0}
    record = json.loads(json.dumps(result.to_dict()))
    assert (
        record["bpd"] == result.bpd
        and record["settings"]["method"] == "rk4"
        and record["evaluations"]["base"] == 80
    )
    assert (
        record["bound"] == "probability flow"
        and record["dtype"] == "float32"
        and record["weights"] == "EMA"
    )
    assert "rk4, 20 steps, 1 rademacher probes" in str(result) and "80.0" in str(result)
    assert "rtol 1e-05" in str(FlowSettings()) and "exact trace" in str(EXACT)


def test_comparison_record() -> None:
    """Evaluations are counted over scales and repeats; the dictionary is JSON; a flow with other
    settings has a name of its own."""
    table = compare_likelihoods(
        shrinking(),
        images(6),
        steps=(10, 100),
        flows=[FlowSettings("rk4", steps=20), FlowSettings("rk4", steps=10)],
        repeats=2,
        times_per_image=3,
        flow_repeats=3,
    )
    assert [w.name for w in table.ways] == [
        "continuous time",
        "T = 10",
        "T = 100",
        "flow, hutchinson",
        "flow, hutchinson (2)",
    ]
    assert [w.evaluations for w in table.ways] == [12, 12, 12, 480, 240]
    assert table["T = 10"].difference > table["T = 100"].difference > 0
    record = json.loads(json.dumps(table.to_dict()))
    assert record["T = 10"]["difference"] == pytest.approx(
        record["T = 10"]["bpd"] - record["continuous time"]["bpd"]
    )
    assert len(str(table).splitlines()) == 6
    assert [w.name for w in compare_likelihoods(shrinking(), images(2), steps=()).ways][1:] == [
        "flow, hutchinson",
        "flow, exact",
    ]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("method must be one of dopri5, .*, got 'rk45'", {"method": "rk45"}),
        ("divergence must be one of exact, hutchinson", {"divergence": "none"}),
        ("probe_kind must be", {"probe_kind": "uniform"}),
        ("tolerances must be positive", {"rtol": 0.0}),
        ("tolerances", {"atol": math.nan}),
        ("at least 1", {"steps": 0}),
        ("at least 1", {"probes": 0}),
        ("at least 1", {"max_evaluations": 0}),
    ],
)
def test_bad_settings(match: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match=match):
        FlowSettings(**arguments)


def test_bad_input() -> None:
    model, x = shrinking(), images(2)
    for match, arguments in (
        ("no images", {"images": x[:0]}),
        ("at least 1, got 0", {"repeats": 0}),
        ("at least 1", {"batch_size": 0}),
        ("takes integer images", {"images": x[..., :2]}),
        ("convert the cascade first", {"dtype": torch.float64}),
    ):
        with pytest.raises(ValueError, match=match):
            evaluate_flow(model, **{"images": x} | arguments)
    with pytest.raises(ValueError, match="at least 2 images"):
        compare_likelihoods(model, x[:1])
    side = math.isqrt(MAX_EXACT) + 2
    large = torch.zeros(1, 1, side, side)
    with pytest.raises(ValueError, match=f"{side**2} coordinates .* use divergence='hutchinson'"):
        flow_log_density(lambda z, *_: z, RANGE, large, None, EXACT)
    for probes in (None, torch.ones(1, 2, 1, 4, 4)):
        with pytest.raises(ValueError, match="use draw_noise"):
            flow_log_density(lambda z, *_: z, RANGE, large, None, FlowSettings(), probes)


def test_broken_weights_and_impossible_tolerances() -> None:
    """What is not finite, or cannot be reached, is one FloatingPointError; the mode of training is
    restored."""
    model, x = shrinking().train(), images(2)
    with torch.no_grad():
        model.networks["details1"].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite at gamma = -10"):
        evaluate_flow(model, x)
    assert model.training
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate_flow(model, x, FlowSettings("euler", steps=3, divergence="exact"))
    with pytest.raises(FloatingPointError, match="after 500 evaluations.*use float64"):
        evaluate_flow(shrinking(), x, FlowSettings(rtol=1e-12, atol=1e-12, max_evaluations=500))


def test_the_denoiser_is_asked_about_no_gamma_outside_the_range() -> None:
    """A field that is flat where it starts has no scale of its own: the solver's first step must
    not follow it out of the range."""
    asked = []

    def denoiser(z, gamma, coarse):
        asked.append(float(gamma[0]))
        # so that v is zero, for data of unit variance
        return torch.sigmoid(gamma).sqrt().reshape(-1, 1, 1, 1) * z

    z_0 = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in ("dopri5", "bosh3", "rk4"):
        settings = FlowSettings(method=method, steps=8, divergence="exact")
        found = flow_log_density(denoiser, (-9.0, 5.0), z_0, None, settings)
        expected = -(z_0.square().flatten(1).sum(1) + 4 * math.log(2 * math.pi)) / 2
        torch.testing.assert_close(found.log_prob, expected)
        assert min(asked) >= -9.0 and max(asked) <= 5.0, method
