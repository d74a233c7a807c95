"""The cascade: the energy identity, scales scored apart, sampling, gradients of what is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcdm_lib.diffusion import LinearSchedule, MonotoneSchedule, gamma_for_spacing, step_term
from pcdm_lib.likelihood import exact_cascade, example_source
from pcdm_lib.maps import HaarWavelet, HierarchicalMap, Identity, LaplacianPyramid, Subsampling
from pcdm_lib.models import Cascade, ModelConfig, build, evaluation_mode

PRESERVING = [m(levels) for m in (HaarWavelet, LaplacianPyramid) for levels in range(4)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
    """A denoiser that says nothing."""
    return torch.zeros_like(z_t)


def linear(z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
    """One that treats all coordinates alike, so that it is the same in any orthonormal basis."""
    return 0.8 * torch.sigmoid(gamma).reshape(-1, 1, 1, 1) * z_t


def cascade_of(
    hierarchy: HierarchicalMap, denoiser=silent, shape: tuple[int, int, int] = (2, 8, 16)
) -> Cascade:
    return Cascade(hierarchy, shape, [denoiser] * hierarchy.num_scales, LinearSchedule(-8.0, 4.0))


def images(n: int, shape: tuple[int, int, int] = (2, 8, 16), max_value: int = 255) -> Tensor:
    return torch.randint(0, max_value + 1, (n, *shape), generator=seeded(3))


def tiny(hierarchy: str = "wavelet", levels: int = 1, **changes) -> Cascade:
    """A small cascade with random weights everywhere."""
    config = {
        "map": hierarchy,
        "levels": levels,
        "image_shape": (1, 4, 4),
        "channels": (8,),
        "blocks": 1,
        "attention": False,
    } | changes
    cascade = build(ModelConfig(**config))
    with torch.no_grad():
        for weight in cascade.networks.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=seeded(weight.numel()))
    return cascade


# ---------------------------------------------------------------- accounting


@pytest.mark.parametrize("hierarchy", PRESERVING)
@pytest.mark.parametrize("denoiser", [silent, linear])
def test_energy_identity(hierarchy: HierarchicalMap, denoiser) -> None:
    """Law: noise drawn over the image and analysed by the map has the same energy over all scales,
    sum |target_s|^2 = |eps|^2; so with a denoiser that treats all coordinates alike, the scales'
    diffusion and prior terms sum to those of the whole image."""
    x, t = images(3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    eps = torch.randn(3, 2, 8, 16, dtype=torch.float64, generator=seeded())
    cascade, whole = cascade_of(hierarchy, denoiser), cascade_of(Identity(), denoiser)
    expected = whole.scales[0].terms(*whole.decompose(x)[0], t, eps)
    coordinates = [
        hierarchy.from_view(spec, view) for spec, view in zip(cascade.specs, hierarchy.analyse(eps))
    ]
    assert torch.allclose(sum((c**2).sum((1, 2, 3)) for c in coordinates), (eps**2).sum((1, 2, 3)))
    terms = [
        cascade.scales[i].terms(z, coarse, t, c)
        for i, ((z, coarse), c) in enumerate(zip(cascade.decompose(x), coordinates))
    ]
    assert torch.allclose(sum(term.diffusion for term in terms), expected.diffusion, rtol=1e-9)
    assert torch.allclose(sum(term.prior for term in terms), expected.prior, rtol=1e-9)


def test_standard_cascade_pays_twice() -> None:
    """The standard cascade's targets have more energy than the image's noise: a coarse pixel counts
    again (Appendix C)."""
    cascade, x = cascade_of(Subsampling(1)), images(200)
    bound = cascade.bound(x, seeded())
    share = (
        bound.diffusion.mean(0) / cascade_of(Identity()).bound(x, seeded()).diffusion.mean()
    ).tolist()
    assert share == pytest.approx([0.25, 1.0], abs=0.03)


@pytest.mark.parametrize("steps", [None, 1, 10])
def test_bound_is_its_scales_terms(steps: int | None) -> None:
    """`bound` is `Scale.terms` at its times and noise; subsets of the scales give their columns;
    totals are sums."""
    cascade, x = tiny(levels=2), images(6, (1, 4, 4))
    times = torch.rand(3, 6, generator=seeded(1))
    bound = cascade.bound(x, seeded(), steps, times=times)
    assert bound.names == ("base", "details2", "details1") and bound.prior.shape == (6, 3)
    generator = seeded()
    for index, (z, coarse) in enumerate(cascade.decompose(x)):
        terms = cascade.scales[index].terms(
            z, coarse, times[index], torch.randn(z.shape, generator=generator), steps
        )
        assert torch.equal(terms.total, bound.per_scale[:, index])
    assert torch.allclose(
        bound.total, (bound.prior + bound.diffusion + bound.reconstruction).sum(1)
    )
    assert cascade.bound(x, seeded(), steps, scales=[2]).names == ("details1",)


def test_step_is_the_one_that_holds_the_time() -> None:
    """With T steps, the mean over times at the middle of each is the sum of the T terms at the same
    noise."""
    cascade, x = tiny(), images(1, (1, 4, 4))
    (z, coarse), eps = cascade.decompose(x)[1], torch.randn(1, 3, 2, 2, generator=seeded())
    middle = [
        cascade.scales[1].terms(z, coarse, torch.tensor([(k - 0.5) / 5]), eps, 5).diffusion
        for k in range(1, 6)
    ]
    y = cascade.specs[1].to_float(z)
    terms = [
        step_term(
            cascade.scales[1].denoiser, cascade.schedules[1], y, coarse, (torch.tensor([k]), 5), eps
        )
        for k in range(1, 6)
    ]
    assert torch.allclose(sum(middle) / 5, sum(terms))


@pytest.mark.parametrize("hierarchy", ["wavelet", "laplacian", "standard"])
def test_a_scale_stands_alone(hierarchy: str) -> None:
    """Law: a conditional scale is scored and trained without the others' networks, to the same
    numbers."""
    whole, x = tiny(hierarchy), images(5, (1, 4, 4))
    z, coarse = whole.decompose(x)[1]
    alone = Cascade(
        whole.map, whole.image_shape, [None, whole.scales[1].denoiser], list(whole.schedules)
    )
    name = whole.specs[1].name
    assert list(alone.networks) == [name]
    for cascade in (whole, alone):
        cascade.zero_grad()
        cascade.scales[1](z, coarse, seeded()).backward()
        assert all(p.grad is not None for p in cascade.networks[name].parameters())
    assert torch.equal(whole.scales[1](z, coarse, seeded()), alone.scales[1](z, coarse, seeded()))
    assert torch.equal(
        whole.bound(x, seeded(), scales=[1]).total, alone.bound(x, seeded(), scales=[1]).total
    )
    with pytest.raises(KeyError, match="no denoiser for scale 'base'.*" + name):
        alone.bound(x, seeded())


def test_loss_is_the_bound_a_dimension() -> None:
    """With learned endpoints the loss is the whole bound of the scale, else its diffusion term;
    nats a dimension of the scale."""
    for schedule in ("linear", "learned_linear"):
        cascade, x = tiny(schedule=schedule), images(8, (1, 4, 4))
        z, coarse = cascade.decompose(x)[1]
        bound = cascade.bound(x, seeded(), scales=[1])
        expected = bound.diffusion if schedule == "linear" else bound.per_scale
        assert torch.allclose(cascade.scales[1](z, coarse, seeded()), expected.mean() / 12)


# ---------------------------------------------------------------- gradients of schedules


@pytest.mark.parametrize("index", [0, 1])
def test_endpoints_learn_from_the_bound(index: int) -> None:
    """The gradient of both endpoints is the finite difference of the bound at the same noise."""
    cascade = tiny(schedule="learned_linear", sigma_ratio=0.4, gamma_max=(1.0,)).double()
    z, coarse = cascade.decompose(images(16, (1, 4, 4)))[index]
    schedule = cascade.schedules[index]

    def loss() -> Tensor:
        return cascade.scales[index](z, coarse, seeded(), dtype=torch.float64)

    loss().backward()
    for parameter in (schedule.start, schedule.log_span):
        ends = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter += shift
                ends.append(float(loss()))
        with torch.no_grad():
            parameter += 1e-5
        assert float(parameter.grad) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)
        assert abs(float(parameter.grad)) > 1e-4


@pytest.mark.parametrize("schedule", ["learned_linear", "monotone"])
@pytest.mark.parametrize("preconditioning", ["none", "gaussian", "lattice"])
def test_gradients_are_finite(schedule: str, preconditioning: str) -> None:
    """Also where so little noise is left that the lattice posterior has no variance at all in
    float32."""
    cascade = tiny(schedule=schedule, preconditioning=preconditioning, sigma_ratio=0.03)
    for index, (z, coarse) in enumerate(cascade.decompose(images(64, (1, 4, 4)))):
        cascade.scales[index].denoiser.fit(z)
        cascade.scales[index](z, coarse, seeded()).backward()
    broken = [
        name
        for name, p in cascade.named_parameters()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    assert broken == []
    assert all(p.grad is not None for p in cascade.schedules.parameters())


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("hierarchy", ["wavelet", "laplacian", "standard"])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_samples_are_images(hierarchy: str, steps: int) -> None:
    """Integers in range, the same for the same seed; the scales are those of the images, the growth
    ends in them."""
    cascade, calls = tiny(hierarchy, levels=2), []
    samples = cascade.sample(4, steps, seeded(), on_step=lambda: calls.append(1))
    assert samples.images.dtype == torch.int32 and samples.images.shape == (4, 1, 4, 4)
    assert (
        int(samples.images.min()) >= 0
        and int(samples.images.max()) <= 255
        and len(calls) == 3 * steps
    )
    assert torch.equal(samples.images, cascade.sample(4, steps, seeded()).images)
    assert not torch.equal(samples.images, cascade.sample(4, steps, seeded(1)).images)
    assert torch.equal(samples.growth[-1], samples.images) and len(samples.growth) == 3
    assert torch.equal(cascade.map.synthesise_integers(samples.scales), samples.images)
    if cascade.map.volume_preserving:  # (the standard cascade draws coarse pixels anew)
        for (z, coarse), drawn, grown in zip(
            cascade.decompose(samples.images), samples.scales, [None, *samples.growth]
        ):
            assert torch.equal(z, drawn) and (coarse is None or torch.equal(coarse, grown))


@pytest.mark.parametrize("hierarchy", [Identity(), HaarWavelet(1), LaplacianPyramid(1)])
def test_sampling_a_thousand_steps(hierarchy: HierarchicalMap) -> None:
    """The exact denoiser, 1000 steps: images in range and of the source's mean (4 standard
    errors)."""
    source = example_source()
    images = (
        exact_cascade(source, hierarchy).sample(200, 1000, seeded(), dtype=torch.float64).images
    )
    mean = (source.log_prob.exp()[:, None] * source.images.flatten(1)).sum()
    sums = images.flatten(1).sum(1).double()
    assert int(images.min()) >= 0 and int(images.max()) <= 3
    assert abs(float(sums.mean() - mean)) < 4 * float(sums.std()) / 200**0.5


# ---------------------------------------------------------------- errors


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="has 3 scales, got 2 denoisers and 3 schedules"):
        Cascade(HaarWavelet(2), (1, 4, 4), [silent] * 2, LinearSchedule())
    with pytest.raises(ValueError, match="has 2 scales, got 2 denoisers and 1 schedules"):
        Cascade(HaarWavelet(1), (1, 4, 4), [silent] * 2, [MonotoneSchedule()])
    with pytest.raises(ValueError, match="n >= 1, got 0"):
        tiny().sample(0, 2, seeded())


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 4, 4).int(),
        torch.zeros(1, 4, 4).int(),
        torch.zeros(2, 1, 4, 6).int(),
        "image",
    ],
)
def test_wrong_images(wrong) -> None:
    with pytest.raises(ValueError, match=r"takes integer images \(N, 1, 4, 4\)"):
        tiny().bound(wrong, seeded())


def test_wrong_values() -> None:
    with pytest.raises(TypeError, match="integers wanted"):
        tiny().bound(torch.rand(2, 1, 4, 4), seeded())
    with pytest.raises(ValueError, match=r"must lie in 0\.\.255"):
        tiny().bound(torch.full((2, 1, 4, 4), 256), seeded())


def test_shared_schedule_and_its_noise() -> None:
    """One schedule given for all scales is one module; `gamma_for_spacing` puts its noise where it
    says."""
    cascade = cascade_of(HaarWavelet(2))
    assert len({id(s) for s in cascade.schedules}) == 1
    spec = cascade.specs[1]
    assert torch.exp(torch.tensor(gamma_for_spacing(spec, 0.25) / 2)).item() == pytest.approx(
        0.25 * spec.gain
    )


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_ends_as_it_began(training: bool) -> None:
    """Also by an error, and for every part of the cascade."""
    cascade = Cascade(Identity(), (1, 2, 2), [torch.nn.Dropout()], LinearSchedule()).train(training)
    with pytest.raises(KeyError), evaluation_mode(cascade):
        assert not any(part.training for part in cascade.modules())
        raise KeyError
    assert {part.training for part in cascade.modules()} == {training}
