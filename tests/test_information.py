"""The map of where the information is: exactly the bound, split up."""

from __future__ import annotations

import pytest
import torch

from pcdm_lib.diffusion import LinearSchedule, per_coefficient
from pcdm_lib.likelihood import evaluate, information_map
from pcdm_lib.likelihood.information import paid_twice
from pcdm_lib.maps import HaarWavelet
from pcdm_lib.models import Cascade, build, preset

SHAPE = (3, 16, 16)


def model(system: str, levels: int, **changes):
    """A tiny cascade whose networks answer something, not the zero of fresh weights."""
    highs = (5.0,) * (levels + 1)
    cascade = build(
        preset("tiny", system, SHAPE)
        .override({"levels": levels, "gamma_max": highs, **changes})
        .model
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in cascade.networks.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return cascade


def pictures(n: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


@pytest.mark.parametrize(
    "system, levels, changes",
    [
        ("wavelet", 2, {}),
        ("laplacian", 1, {}),
        ("vdm", 0, {}),
        ("standard", 1, {}),
        ("wavelet", 1, {"schedule": "monotone"}),
        ("wavelet", 1, {"schedule": "learned_linear"}),
    ],
)
def test_the_map_sums_to_the_bound(system: str, levels: int, changes: dict) -> None:
    """Law: coefficients, pixels and bands each sum to the figures of evaluate() with the same
    draws, image by image and scale by scale."""
    cascade, x = model(system, levels, **changes), pictures(3)
    found = information_map(cascade, x, times=3, seed=5)
    same = evaluate(cascade, x, repeats=1, times_per_image=3, seed=5)
    # (images, scales) bits
    expected = torch.from_numpy(same.parts.sum(axis=3)[:, 0]) * cascade.dims
    torch.testing.assert_close(found.bits(), expected, rtol=2e-5, atol=0.01)
    torch.testing.assert_close(found.pixel_bits().sum(dim=(2, 3)), found.bits())
    torch.testing.assert_close(sum(found.band_bits().values()), found.bits().sum(dim=1))
    assert found.pixel_bits().shape == (3, levels + 1, *SHAPE[1:])
    assert (
        len(found.band_bits())
        == {"wavelet": 1 + 3 * levels, "laplacian": 1 + 3 * levels, "vdm": 1, "standard": 2}[system]
    )


def test_the_steps_of_a_finite_model_are_split_too() -> None:
    cascade, x = model("wavelet", 1), pictures(2)
    for index, (z, coarse) in enumerate(cascade.decompose(x)):
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        t = torch.tensor([0.2, 0.9])
        whole = cascade.scales[index].terms(z, coarse, t, eps, steps=7)
        parts = cascade.scales[index].terms(z, coarse, t, eps, steps=7, share=per_coefficient)
        for total, split in zip(whole, parts):
            assert split.shape == z.shape
            torch.testing.assert_close(split.flatten(1).sum(dim=1), total, rtol=2e-5, atol=1e-3)


def shrink(z_t: torch.Tensor, gamma: torch.Tensor, coarse: torch.Tensor | None) -> torch.Tensor:
    """The best denoiser of Gaussian data of variance 1/4; looks at each coefficient alone."""
    sigma2 = torch.sigmoid(gamma).reshape(-1, 1, 1, 1)
    return sigma2.sqrt() / (0.25 * (1 - sigma2) + sigma2) * z_t


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_coefficient_is_drawn_over_its_own_pixels(levels: int) -> None:
    """A checkerboard in a flat image, under a denoiser without neighbours: what it adds lies on its
    own pixels, and nowhere else."""
    cascade = Cascade(
        HaarWavelet(levels), SHAPE, [shrink] * (levels + 1), LinearSchedule(-10.0, 4.0)
    )
    flat = torch.full((1, *SHAPE), 128, dtype=torch.uint8)
    x = flat.clone()
    x[:, :, 4:8, 8:12] = 255 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2).to(torch.uint8)
    before, after = (
        information_map(cascade, image, times=4).pixel_bits()[0] for image in (flat, x)
    )
    added = (after - before).abs().sum(dim=0)
    assert added[4:8, 8:12].min() > 0.1
    added[4:8, 8:12] = 0
    assert added.max() == 0


def test_bad_input_is_named() -> None:
    cascade = model("wavelet", 1)
    with pytest.raises(ValueError, match="at least one image"):
        information_map(cascade, pictures(0))
    with pytest.raises(ValueError, match="0"):
        information_map(cascade, pictures(1), times=0)
    broken = model("wavelet", 1)
    with torch.no_grad():
        next(broken.networks.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        information_map(broken, pictures(1), times=1)


@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_paid_twice(levels: int) -> None:
    """The standard cascade's bits in three parts that sum to its bound; a quarter of every finer
    scale is known, and with fresh weights it is paid for like the rest, so the second payment is
    near a third of what the new pixels cost."""
    cascade, x = (
        build(preset("tiny", "standard", SHAPE).override({"levels": levels}).model),
        pictures(4),
    )
    found = paid_twice(cascade, x, times=4, seed=1)
    total = information_map(cascade, x, times=4, seed=1).bits().sum(dim=1) / cascade.dims
    torch.testing.assert_close(found.first + found.again + found.new, total)
    assert 0.8 < float((3 * found.again / found.new).mean()) < 1.25
    facts = found.to_dict()
    assert (
        facts["bpd"] == pytest.approx(float(found.again.mean()))
        and facts["images"] == 4
        and facts["se"] > 0
    )


def test_other_maps_pay_nothing_twice() -> None:
    with pytest.raises(ValueError, match="holds every number once"):
        paid_twice(model("wavelet", 1), pictures(1))
