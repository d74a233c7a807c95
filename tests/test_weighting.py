"""The weighting of Karras et al. 2022: their formulas by hand, and that a model trained so still
has a valid bound."""

from __future__ import annotations

import math

import pytest
import torch

from pcdm_lib.diffusion import EdmLoss, LinearSchedule
from pcdm_lib.likelihood import evaluate, example_source
from pcdm_lib.maps import HaarWavelet, Identity
from pcdm_lib.models import PreconditionedDenoiser, build, preset
from pcdm_lib.training import Trainer


def test_noise_levels_are_lognormal() -> None:
    """For data of standard deviation 1/2, ln sigma has mean -1.2 and standard deviation 1.2 (their
    Table 1)."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    log_sigma = EdmLoss(0.5).levels(LinearSchedule(-30.0, 30.0).double(), u) / 2
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=1e-3) and float(
        log_sigma.std()
    ) == pytest.approx(1.2, abs=1e-2)
    # of other data: the same relative to it
    other = EdmLoss(2.0).levels(LinearSchedule(-30.0, 30.0).double(), u) / 2
    assert float((other - log_sigma - math.log(4)).abs().max()) < 1e-9


def test_levels_stay_inside_the_schedule() -> None:
    """The lognormal is cut to the range that the network's embedding knows, with no heap at its
    ends."""
    schedule = LinearSchedule(-5.0, 1.0)
    gamma = EdmLoss(0.5).levels(schedule, torch.linspace(0, 1 - 1e-7, 5001))
    assert float(gamma.min()) >= -5.0 and float(gamma.max()) <= 1.0
    assert int((gamma == -5.0).sum()) + int((gamma == 1.0).sum()) <= 2 and bool(
        (gamma.diff() >= 0).all()
    )


def test_loss_is_theirs() -> None:
    """lambda(sigma) |D - y|^2 / 2 with D from the noise prediction, sigma = sqrt(exp(gamma)),
    computed their way."""
    generator = torch.Generator().manual_seed(0)
    y, eps = (torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    u = torch.rand(5, generator=generator, dtype=torch.float64)
    schedule, loss, seen = LinearSchedule(-9.0, 5.0).double(), EdmLoss(0.7), {}

    def denoiser(z_t, gamma, coarse):
        seen.update(z_t=z_t, gamma=gamma)
        return 0.3 * z_t

    found = loss(denoiser, schedule, y, None, u, eps)
    sigma = torch.exp(seen["gamma"] / 2).reshape(-1, 1, 1, 1)
    noisy = y + sigma * eps
    torch.testing.assert_close(seen["z_t"], noisy / torch.sqrt(1 + sigma**2))
    denoised = noisy - sigma * 0.3 * seen["z_t"]
    expected = ((sigma**2 + 0.7**2) / (sigma * 0.7) ** 2 * (denoised - y) ** 2).flatten(1).sum(
        1
    ) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("hierarchy", [Identity(), HaarWavelet(1)])
def test_gaussian_preconditioning_is_theirs(hierarchy) -> None:
    """D = c_skip x + c_out F for centred data: c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s /
    sqrt(sigma^2 + s^2) (their Table 1), with s of each band; so their weight makes the loss |F -
    target|^2."""
    spec = hierarchy.specs((1, 4, 4), 255)[-1]
    net = PreconditionedDenoiser(
        hierarchy,
        spec,
        (-9.0, 5.0),
        "gaussian",
        "none",
        "plain",
        channels=(8,),
        blocks=1,
        attention=False,
    ).double()
    net.mean.fill_(-spec.shift / spec.gain)  # centred in orthonormal coordinates
    net.std.fill_(0.5 / spec.gain)
    torch.nn.init.normal_(net.net.exit.weight, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *spec.shape, generator=generator, dtype=torch.float64)
    gamma = torch.tensor([-4.0, 0.0, 2.0], dtype=torch.float64)
    sigma = torch.exp(gamma / 2).reshape(-1, 1, 1, 1)
    coarse = None if spec.condition_shape is None else torch.full((3, 1, 2, 2), 4 * 128)
    z_t = x / torch.sqrt(1 + sigma**2)
    seen = []
    net.net.register_forward_hook(lambda module, inputs, out: seen.append(out))
    denoised = x - sigma * net(z_t, gamma, coarse)
    s2 = 0.25
    torch.testing.assert_close(
        denoised, s2 / (sigma**2 + s2) * x - sigma * 0.5 / torch.sqrt(sigma**2 + s2) * seen[0]
    )


def test_a_model_trained_so_has_a_bound_and_costs_more(tmp_path) -> None:
    """The price in bits: the same network and number of updates, trained on the weighted loss,
    takes more bits than on the bound, and its bound is still above the entropy. The log says that
    its losses are no bits."""
    source = example_source()
    images = (source.images[source.draw(512, torch.Generator().manual_seed(0))] * 85).to(
        torch.uint8
    )
    figures = {}
    for name in ("small", "edm"):
        config = preset(name, "wavelet", (1, 2, 2)).override(
            {"channels": "8", "blocks": 1, "base_channels": "8", "attention": False}
        )
        trainer = Trainer(config, images, tmp_path / name, side_by_side=False)
        trainer.run(steps=60, progress=False)
        figures[name] = evaluate(trainer.cascade, images[:256], repeats=2, times_per_image=4)
        log = (tmp_path / name / "log.jsonl").read_text()
        assert ('"weighting": "edm"' in log) == (name == "edm")
    assert (
        figures["edm"].bpd > figures["small"].bpd + 0.1
        and figures["small"].bpd > source.entropy_bits_per_dim
    )
    with pytest.raises(ValueError, match="weighting='karras': expected one of"):
        preset("edm").override({"weighting": "karras"})


def test_edm_preset_builds_for_every_system() -> None:
    for system in ("wavelet", "laplacian", "standard", "vdm"):
        config = preset("edm", system)
        assert config.model.preconditioning == "gaussian" and config.training.weighting == "edm"
        with torch.device("meta"):
            build(config.model)
