"""The network, and the preconditioning between it and the bound: against brute-force sums over the
lattice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pcdm_lib.maps import HaarWavelet, HierarchicalMap, Identity, LaplacianPyramid, Subsampling
from pcdm_lib.maps.lattice import lattice_posterior
from pcdm_lib.models import PreconditionedDenoiser, UNet, build, preset
from pcdm_lib.models.preconditioning import (
    FEATURES,
    PRECONDITIONINGS,
    Whitening,
    neighbour_differences,
)

MAPS = [Identity(), HaarWavelet(2), LaplacianPyramid(2), Subsampling(2)]
SMALL = {"channels": (8,), "blocks": 1, "dropout": 0.0, "attention": False}


def denoiser(
    hierarchy: HierarchicalMap,
    index: int,
    shape: tuple[int, int, int] = (3, 16, 16),
    max_value: int = 255,
    preconditioning: str = "lattice",
    features: str = "lattice",
    **unet,
) -> PreconditionedDenoiser:
    torch.manual_seed(0)
    return PreconditionedDenoiser(
        hierarchy,
        hierarchy.specs(shape, max_value)[index],
        (-12.0, 5.0),
        preconditioning,
        features,
        **SMALL | unet,
    )


def batch(
    net: PreconditionedDenoiser, n: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """z_t, gamma and coarser integers of the right shapes."""
    spec, generator = net.spec, torch.Generator().manual_seed(seed)
    coarse = None
    if spec.condition_shape:
        pixels = torch.randint(0, spec.max_value + 1, (n, 3, 16, 16), generator=generator)
        coarse = net.map.decompose(pixels, spec.max_value)[spec.index][1]
    return torch.randn(n, *spec.shape, generator=generator), torch.linspace(-10, 4, n), coarse


def shake(module: torch.nn.Module, size: float = 0.05) -> torch.nn.Module:
    """Random numbers on every weight, so that nothing is zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in module.parameters():
            weight += size * torch.randn(weight.shape, generator=generator)
    return module


# ---------------------------------------------------------------- network


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 24)])
def test_unet_shapes_and_zero_start(channels: tuple[int, ...]) -> None:
    net = UNet(5, 3, channels, blocks=2, dropout=0.0)
    x, level = torch.randn(2, 5, 8, 12), torch.tensor([0.0, 1.0])
    assert net(x, level).shape == (2, 3, 8, 12) and float(net(x, level).detach().abs().max()) == 0
    assert float(shake(net)(x, level).detach().abs().max()) > 0


@pytest.mark.parametrize("width", [4, 8, 16, 32, 48, 64])
def test_the_noise_level_is_heard(width: int) -> None:
    """Law: at any width the output depends on the level, also on a 1x1 grid (a normalisation of
    single channels would hide it)."""
    torch.manual_seed(0)
    for side in (1, 4):
        net = shake(UNet(1, 1, (width,), blocks=1, dropout=0.0, attention=False), 0.2)
        x = torch.ones(2, 1, side, side)
        out = net(x, torch.tensor([0.1, 0.9])).detach()
        assert float((out[0] - out[1]).abs().max()) > 1e-3


def test_sides_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"halves the side 2 times, got \(6, 8\)"):
        UNet(1, 1, (8, 8, 8), blocks=1)(torch.zeros(1, 1, 6, 8), torch.zeros(1))
    for wrong in ({"channels": ()}, {"blocks": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="at least one stage"):
            UNet(1, 1, **wrong)


def test_paper_preset_has_vdm_size() -> None:
    """VDM's CIFAR-10 network has about 31 million parameters; so has ours."""
    with torch.device("meta"):
        cascade = build(preset("paper-cifar10", "vdm").model)
    count = sum(p.numel() for p in cascade.networks["base"].net.parameters())
    assert count == 30_586_243, count


def test_dropout_is_off_in_eval() -> None:
    net = shake(denoiser(HaarWavelet(1), 1, dropout=0.5))
    inputs = batch(net)
    assert not torch.equal(net.train()(*inputs), net(*inputs))
    assert torch.equal(net.eval()(*inputs), net(*inputs))


@pytest.mark.parametrize("hierarchy", MAPS)
def test_gradient_reaches_every_parameter(hierarchy: HierarchicalMap) -> None:
    """The layers that start at zero let it through one after the other: the last one at once, all
    of them after three steps."""
    net = denoiser(hierarchy, hierarchy.levels, attention=True, channels=(8, 8))
    inputs = batch(net)
    target, optimiser = torch.randn(inputs[0].shape), torch.optim.Adam(net.parameters(), 1e-2)
    for _step in range(4):
        optimiser.zero_grad()
        ((net(*inputs) - target) ** 2).mean().backward()
        silent = [
            name
            for name, p in net.named_parameters()
            if p.grad is None or float(p.grad.abs().max()) == 0
        ]
        assert "net.exit.weight" not in silent
        optimiser.step()
    assert silent == []


# ---------------------------------------------------------------- the lattice posterior


def brute_posterior(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, summed over 200 integers."""
    z = torch.arange(-100, 101, dtype=torch.float64) + mean.round()[..., None]
    weight = torch.softmax(-((z - mean[..., None]) ** 2) / (2 * std[..., None] ** 2), -1)
    first = (weight * z).sum(-1)
    return first, (weight * (z - first[..., None]) ** 2).sum(-1)


def brute_details(score: Tensor, s: Tensor, integers: Tensor) -> Tensor:
    """Means of (p, q, r) under exp(score), (B, 3, K) over `integers`, restricted to what belongs to
    an image: the parity of s (B,) and s + p + q + r = 0 (mod 4); summed over all K^3 triples."""
    weight = torch.softmax(score, -1)
    p, q, r = integers[:, None, None], integers[None, :, None], integers[None, None, :]
    out = torch.empty(score.shape[:2], dtype=torch.float64)
    for residue in range(4):
        rows = (s % 4 == residue).nonzero()[:, 0]
        legal = (
            ((p - residue) % 2 == 0) & ((q - residue) % 2 == 0) & ((residue + p + q + r) % 4 == 0)
        )
        joint = torch.einsum("bi,bj,bk,ijk->bijk", *weight[rows].unbind(1), legal.double())
        joint = joint / joint.sum((1, 2, 3), keepdim=True)
        for band, others in enumerate(((2, 3), (1, 3), (1, 2))):
            out[rows, band] = (joint.sum(others) * integers).sum(-1)
    return out


def test_lattice_posterior() -> None:
    """Mean and variance within 1e-5 of the sum over the integers, for standard deviations of 0.01
    to 5."""
    generator = torch.Generator().manual_seed(0)
    std = (
        torch.cat([torch.logspace(-2, math.log10(5), 60), torch.linspace(0.4, 0.8, 41)])
        .double()[:, None]
        .expand(-1, 50)
    )
    mean = 10 * torch.randn(std.shape, generator=generator, dtype=torch.float64)
    for found, wanted in zip(lattice_posterior(mean, std), brute_posterior(mean, std)):
        assert float((found - wanted).abs().max()) < 1e-5


# ---------------------------------------------------------------- preconditioning


@pytest.mark.parametrize("max_value", [3, 255])
@pytest.mark.parametrize(
    ("hierarchy", "index"),
    [
        (Identity(), 0),
        (HaarWavelet(2), 0),
        (HaarWavelet(2), 1),
        (LaplacianPyramid(1), 1),
        (Subsampling(1), 1),
    ],
)
def test_untrained_lattice_denoiser_is_the_posterior_mean(
    hierarchy: HierarchicalMap, index: int, max_value: int
) -> None:
    """Law: at the start, eps_hat = (z_t - alpha E[y | z_t]) / sigma for independent Gaussians
    restricted to the integers, or for details to those triples that agree with the coarser sum in
    parity and mod 4; from the definition, a sum over all of them."""
    net = denoiser(hierarchy, index, max_value=max_value).double()
    spec = net.spec
    net.mean.copy_(torch.linspace(-2, 3, len(net.mean)).reshape(-1, 1, 1))
    net.std.copy_(torch.linspace(0.8, 3, len(net.std)).reshape(-1, 1, 1))
    _, _, coarse = batch(net, 2)
    z = (
        torch.randn(2, *spec.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        * 3
    )
    integers = torch.arange(-20, 21, dtype=torch.float64)
    for ratio in (0.5, 0.9, 4.0):  # sigma / alpha on the axis of the integers
        gamma = torch.full((2,), 2 * math.log(ratio * spec.gain), dtype=torch.float64)
        alpha, sigma = torch.sigmoid(-gamma[0]).sqrt(), torch.sigmoid(gamma[0]).sqrt()
        # what was seen: `z` itself on the axis of the integers
        z_t = alpha * (spec.gain * z + spec.shift)
        score = -((integers - net.mean[..., None]) ** 2) / (2 * net.std[..., None] ** 2) - (
            integers - z[..., None]
        ) ** 2 / (2 * ratio**2)
        found = (z_t - sigma * net(z_t, gamma, coarse)) / alpha / spec.gain - spec.shift / spec.gain
        if spec.kind == "details":
            blocks = (
                score.reshape(2, 3, 3, -1, len(integers))
                .permute(0, 2, 3, 1, 4)
                .reshape(-1, 3, len(integers))[::4]
            )
            expected = brute_details(blocks, coarse.flatten()[::4], integers)
            found = found.reshape(2, 3, 3, -1).permute(0, 2, 3, 1).reshape(-1, 3)[::4]
        else:
            expected = (torch.softmax(score, -1) * integers).sum(-1)
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_untrained_gaussian_denoiser(index: int) -> None:
    """`gaussian`: eps_hat = sigma (z_t - alpha m) / (alpha^2 v + sigma^2) for y ~ N(m, v); `none`:
    eps_hat = z_t."""
    net = denoiser(HaarWavelet(1), index, preconditioning="gaussian").double()
    net.fit(
        torch.randint(-40, 90, (50, *net.spec.shape), generator=torch.Generator().manual_seed(0))
    )
    z_t, gamma, coarse = batch(net)
    z_t, gamma = z_t.double(), gamma.double()
    alpha, sigma = (torch.sigmoid(s * gamma).sqrt().reshape(-1, 1, 1, 1) for s in (-1, 1))
    m, v = net.spec.gain * net.mean + net.spec.shift, (net.spec.gain * net.std) ** 2
    assert torch.allclose(
        net(z_t, gamma, coarse), sigma * (z_t - alpha * m) / (alpha**2 * v + sigma**2), atol=1e-8
    )
    plain = denoiser(HaarWavelet(1), index, preconditioning="none").double()
    assert torch.equal(plain(z_t, gamma, coarse), z_t)


def test_fit() -> None:
    """Mean and standard deviation of every channel, never below a quarter of an integer."""
    net = denoiser(HaarWavelet(1), 1)
    z = torch.randint(-9, 30, (40, *net.spec.shape), generator=torch.Generator().manual_seed(0))
    z[:, 2] = 5
    net.fit(z)
    assert torch.allclose(net.mean.flatten(), z.double().mean((0, 2, 3)).float())
    assert float(net.std[2]) == 0.25 and float(net.std[0]) == pytest.approx(
        float(z[:, 0].double().std(correction=0))
    )


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("hierarchy", MAPS)
def test_every_combination_runs(
    hierarchy: HierarchicalMap, preconditioning: str, features: str
) -> None:
    """Output of the shape of z_t; the network sees view, condition and four waves a phase, at the
    view's resolution."""
    for index in range(hierarchy.num_scales):
        net = shake(denoiser(hierarchy, index, preconditioning=preconditioning, features=features))
        z_t, gamma, coarse = batch(net)
        out = net(z_t, gamma, coarse)
        assert out.shape == z_t.shape and bool(torch.isfinite(out).all())
        spec, (_, tau) = net.spec, (None, torch.exp(gamma / 2).reshape(-1, 1, 1, 1) / net.spec.gain)
        waves = net._waves(z_t, z_t / spec.gain, tau, coarse)
        assert all(w.shape == (3, waves[0].shape[1], *spec.view_shape[1:]) for w in waves)
        condition = spec.condition_shape[0] if spec.condition_shape else 0
        assert net.net.entry.in_channels == spec.view_shape[0] + condition + sum(
            w.shape[1] for w in waves
        )


def test_channels_of_the_paper() -> None:
    """docs/likelihood.md, Sect. 3: without waves the first detail network sees 12 channels of the
    wavelet, 6 of the pyramid."""
    assert denoiser(HaarWavelet(1), 1, features="none").net.entry.in_channels == 12
    assert denoiser(LaplacianPyramid(1), 1, features="none").net.entry.in_channels == 6


def test_vdm_waves() -> None:
    """VDM's Fourier features: sin and cos of 2^n pi z for n = 7 and 8, so that neighbouring grey
    levels of 256 get opposite signs of the first pair."""
    net = denoiser(Identity(), 0, features="vdm")
    z = torch.rand(1, 3, 16, 16)
    waves = net._waves(z, z, z, None)
    for wave, (n, f) in zip(
        waves, [(7, torch.sin), (7, torch.cos), (8, torch.sin), (8, torch.cos)]
    ):
        assert torch.allclose(wave, f(2.0**n * math.pi * z), atol=1e-4)


@pytest.mark.parametrize("hierarchy", [HaarWavelet(1), LaplacianPyramid(1)])
def test_lattice_waves_are_the_same_for_all_clean_images(hierarchy: HierarchicalMap) -> None:
    """Law: without noise every image stands on the lattice: the waves of period 1 are cos = 1 and
    sin = 0."""
    net = denoiser(hierarchy, 1).double()
    x = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    z, coarse = hierarchy.decompose(x)[1]
    sine, cosine = net._waves(z.double(), z.double(), torch.tensor(1e-9).double(), coarse)[:2]
    assert float(sine.abs().max()) < 1e-6 and float((cosine - 1).abs().max()) < 1e-6


# ---------------------------------------------------------------- whitened inputs


def smooth_images(n: int, seed: int = 0) -> Tensor:
    """Random walks in both directions with colours alike, uint8 (n, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    walk = (
        torch.randn(n, 1, 16, 16, generator=generator).cumsum(2).cumsum(3) * 3
        + torch.randn(n, 3, 1, 1, generator=generator) * 4
    )
    return (walk + 128).round().clamp(0, 255).to(torch.uint8)


def test_differences() -> None:
    x = torch.tensor([[[[1.0, 4.0], [3.0, 9.0]]]])
    assert neighbour_differences(x).tolist() == [
        [[[0.0, 3.0], [0.0, 6.0]], [[0.0, 0.0], [2.0, 5.0]]]
    ]


def test_whitening() -> None:
    """The channels of a group end up uncorrelated and of unit variance, also under white noise of a
    given variance."""
    generator = torch.Generator().manual_seed(0)
    mixed = (
        torch.einsum(
            "cd,ndhw->nchw",
            torch.tensor([[3.0, 0, 0], [2.9, 0.3, 0], [3.1, 0, 0.1]]),
            torch.randn(500, 3, 8, 8, generator=generator),
        )
        + 7
    )
    whitening = Whitening(3, 3)
    whitening.fit(mixed, floor=1e-6)
    for deviation in (0.0, 0.5, 20.0):
        noisy = mixed + deviation * torch.randn(mixed.shape, generator=generator)
        white = whitening(noisy, deviation**2).movedim(1, 0).flatten(1)
        assert (
            torch.allclose(torch.cov(white), torch.eye(3), atol=0.05)
            and float(white.mean(1).abs().max()) < 0.05
        )
    flat = Whitening(2, 1)  # two groups of one; a constant channel stays finite
    flat.fit(torch.cat([mixed[:, :1], torch.full_like(mixed[:, :1], 5.0)], dim=1), floor=0.25)
    assert (
        flat.variance[1].item() == 0.25
        and flat(torch.full((1, 2, 4, 4), 5.0))[0, 1].abs().max().item() < 1e-6
    )


@pytest.mark.parametrize(
    "hierarchy", [Identity(), HaarWavelet(1), LaplacianPyramid(1), Subsampling(1)]
)
def test_whitened_inputs_have_unit_size_at_every_noise_level(hierarchy: HierarchicalMap) -> None:
    """Scale, coarser image and differences: every channel of about unit variance (some less: three
    bands on four pixels, constant blocks, a floor of a quarter of a grey level), where plain inputs
    differ by the range of an image over its contrast."""
    pairs = hierarchy.decompose(smooth_images(64), 255)
    for index, (z, coarse) in enumerate(pairs):
        net = denoiser(hierarchy, index, inputs="whitened")
        net.fit(z, coarse)
        for gamma in (-10.0, -4.0, 4.0):
            tau = torch.tensor(math.exp(gamma / 2) / net.spec.gain)
            centre = z + tau * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
            for channels in net._inputs(centre, centre, tau, coarse):
                variance = channels.var(dim=(0, 2, 3))
                assert float(variance.min()) > 0.2 and float(variance.max()) < 1.6
        assert (
            shake(net)(
                *[
                    v[:2] if v is not None else None
                    for v in (net.spec.to_float(z, torch.float32), torch.zeros(64), coarse)
                ]
            )
            .isfinite()
            .all()
        )
        if index:
            with pytest.raises(ValueError, match="fit needs the coarser integers"):
                net.fit(z)


def test_unknown_choices() -> None:
    for wrong in ({"preconditioning": "edm"}, {"features": "fourier"}, {"inputs": "sharpened"}):
        with pytest.raises(
            ValueError,
            match=f"{next(iter(wrong))} must be one of .*, got '{next(iter(wrong.values()))}'",
        ):
            denoiser(Identity(), 0, **wrong)
    with pytest.raises(ValueError, match="set inputs=plain"):
        denoiser(Identity(), 0, preconditioning="none", inputs="whitened")
