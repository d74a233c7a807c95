"""Configurations: records that survive JSON, settings read from text, and cascades that score."""

from __future__ import annotations

import json

import pytest
import torch

from pcdm_lib.models import Config, ModelConfig, build, preset
from pcdm_lib.models.config import config_differences
from pcdm_lib.models.presets import (
    LEVELS,
    PAPER_SETTINGS,
    PRESETS,
    SYSTEMS,
    budget,
    parameter_counts,
)
from pcdm_lib.training import Trainer

EVERY = [(name, system) for name in PRESETS for system in SYSTEMS]
SMALL = [(name, system) for name, system in EVERY if name not in PAPER_SETTINGS]


def shape(name: str) -> tuple[int, int, int]:
    """Images that a preset takes: small ones where it takes any."""
    return (
        (3, PAPER_SETTINGS[name].side, PAPER_SETTINGS[name].side)
        if name in PAPER_SETTINGS
        else (3, 16, 16)
    )


@pytest.mark.parametrize(("name", "system"), EVERY)
def test_json_round_trip(name: str, system: str) -> None:
    config = preset(name, system, shape(name))
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and config_differences(again.to_dict(), config.to_dict()) == []
    assert isinstance(again.model.channels, tuple) and hash(again) == hash(config)


@pytest.mark.parametrize(("name", "system"), SMALL)
def test_builds_and_scores(name: str, system: str) -> None:
    """Every small preset scores a batch, in figures that eight bits make plausible before any
    training."""
    cascade = build(preset(name, system, (3, 16, 16)).model)
    x = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bpd = cascade.bound(x, torch.Generator().manual_seed(0)).total / (768 * 0.6931)
    assert bpd.shape == (2,) and bool(torch.isfinite(bpd).all()) and float(bpd.min()) > 0


@pytest.mark.parametrize("system", list(SYSTEMS))
@pytest.mark.parametrize("name", list(PAPER_SETTINGS))
def test_paper_presets_build(name: str, system: str) -> None:
    """Appendix B: S scales, VDM's network of the stated width and depth at every one of them, VDM's
    noise levels, one schedule a scale."""
    setting = PAPER_SETTINGS[name]
    config = preset(name, system, shape(name))
    with torch.device("meta"):
        cascade = build(config.model)
    scales = {
        "paper-cifar10": 2,
        "paper-imagenet32": 2,
        "paper-imagenet64": 3,
        "paper-imagenet128": 4,
    }[name]
    assert len(cascade.networks) == len(cascade.specs) == (1 if system == "vdm" else scales)
    for network in cascade.networks.values():
        assert (
            network.net.entry.out_channels == setting.channels
            and len(network.net.down) == setting.blocks
        )
    assert config.model.gamma_min == (-13.3,) and config.model.gamma_max == (5.0,)
    assert all(schedule.learned_endpoints for schedule in cascade.schedules)
    assert config.training.optimiser == "adamw" and budget(name) == (
        2_000_000 if name == "paper-cifar10" else 10_000_000
    )


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_parameter_counts(system: str) -> None:
    """31 million a network at CIFAR-10's width; four times as many at twice the width, twice that
    at twice the depth."""
    sizes = [
        next(iter(parameter_counts(preset(name, system, shape(name)).model).values()))
        for name in PAPER_SETTINGS
    ]
    assert 30e6 < sizes[0] < 32e6
    assert (
        sizes[1] / sizes[0] == pytest.approx(4, rel=0.02)
        and sizes[2] / sizes[1] == pytest.approx(2, rel=0.04)
        and sizes[3] == sizes[2]
    )


@pytest.mark.parametrize("name", list(PAPER_SETTINGS))
def test_paper_presets_refuse_other_resolutions(name: str) -> None:
    with pytest.raises(ValueError, match=f"preset {name!r} is for .* images, got 48x48: use small"):
        preset(name, "wavelet", (3, 48, 48))
    with pytest.raises(ValueError, match="got 64x64: use paper-imagenet64 or small"):
        preset("paper-cifar10", "wavelet", (3, 64, 64))


@pytest.mark.parametrize("system", list(SYSTEMS))
@pytest.mark.parametrize("name", list(PAPER_SETTINGS))
def test_paper_presets_train_and_score(name: str, system: str, tmp_path) -> None:
    """One update and one evaluation of every preset as it is, but for networks cut down to what a
    test can wait for: maps, scales, schedules, optimiser and dropout are the preset's. (`python -m
        benchmarks.presets` runs them at full size.)"""
    side = PAPER_SETTINGS[name].side
    config = preset(name, system, shape(name)).override(
        {"channels": "8", "blocks": 1, "batch_size": 2}
    )
    images = torch.randint(
        0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    trainer = Trainer(config, images, tmp_path / "run")
    trainer.run(steps=1, progress=False)
    with torch.no_grad():
        bound = trainer.cascade.eval().bound(images, torch.Generator().manual_seed(1))
    assert (
        trainer.step == 1
        and bound.per_scale.shape[1] == len(trainer.cascade.specs)
        and bool(torch.isfinite(bound.total).all())
    )


def test_scales_follow_the_side() -> None:
    """S = 2, 3 and 4 for 32, 64 and 128 pixels, with a noise range for each."""
    for side, levels in LEVELS.items():
        for system in SYSTEMS:
            model = preset("small", system, (3, side, side)).model
            assert model.levels == (0 if system == "vdm" else levels) and len(model.gamma_max) in (
                1,
                levels + 1,
            )
            with torch.device("meta"):
                build(model)
    assert preset("small", "wavelet", (3, 128, 128)).model.gamma_max == (5.0, 3.0, 3.0, 3.0)


def test_override_reads_text() -> None:
    config = preset("tiny").override(
        {
            "channels": "32,48",
            "blocks": "3",
            "attention": "true",
            "gamma_max": "4.5",
            "gamma_min": "",
            "learning_rate": "1e-3",
            "schedule": "monotone",
            "flips": False,
            "dropout": 0,
        }
    )
    assert (
        config.model.channels == (32, 48)
        and config.model.blocks == 3
        and config.model.attention is True
    )
    assert (
        config.model.gamma_max == (4.5,)
        and config.model.gamma_min == ()
        and config.training.learning_rate == 1e-3
    )
    assert (
        config.model.schedule == "monotone"
        and config.training.flips is False
        and config.model.dropout == 0.0
    )
    assert preset("tiny").override({"gamma_max": 3.0}).model.gamma_max == (3.0,)
    assert preset("tiny").override({}) == preset("tiny")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocks", "2.5"),
        ("blocks", 2.5),
        ("blocks", "many"),
        ("attention", "yes"),
        ("attention", 3),
        ("channels", "8,x"),
        ("channels", "8,8.5"),
        ("channels", [8, 8.5]),
        ("learning_rate", "fast"),
        ("channels", None),
    ],
)
def test_override_refuses(key: str, value) -> None:
    with pytest.raises(ValueError, match=f"setting {key}=.* cannot be read as"):
        preset("tiny").override({key: value})


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown setting 'blocs', did you mean 'blocks'"):
        preset("tiny").override({"blocs": 2})
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        preset("huge")
    with pytest.raises(ValueError, match="unknown system 'fourier'"):
        preset("tiny", "fourier")
    with pytest.raises(ValueError, match=r"unknown scales \['detail'\].*details1"):
        build(preset("tiny").model, scales=["detail"])


def test_broken_records() -> None:
    good = preset("tiny").to_dict()
    for broken in (
        {k: v for k, v in good.items() if k != "model"},
        good | {"extra": 1},
        good | {"model": good["model"] | {"depth": 3}},
    ):
        with pytest.raises(ValueError, match="not a configuration of this version"):
            Config.from_dict(broken)


def test_differences() -> None:
    """One line a leaf, by its path; tuples equal lists; what is missing is said to be."""
    a, b = preset("tiny").to_dict(), preset("tiny").override({"blocks": 7}).to_dict()
    assert config_differences(a, b) == ["model.blocks: expected 1, found 7"]
    assert config_differences({"x": (1, 2)}, {"x": [1, 2]}) == []
    assert config_differences({"x": 1}, {}) == ["x: expected 1, found '(nothing)'"]
    assert config_differences({"m": {"x": 1}}, {}) == ["m: expected {'x': 1}, found '(nothing)'"]


def test_weights_depend_on_the_seed_alone() -> None:
    """Not on the global generator, which is left as it was, nor on which other scales are built."""
    config = preset("tiny").model
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(config, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other, alone = (
        build(config, seed=5),
        build(config, seed=6),
        build(config, seed=5, scales=["details1"]),
    )
    same = dict(second.named_parameters())
    assert all(torch.equal(p, same[name]) for name, p in first.named_parameters())
    assert list(alone.networks) == ["details1"]
    assert all(torch.equal(p, same[name]) for name, p in alone.named_parameters())
    assert not torch.equal(
        dict(other.named_parameters())["networks.base.net.entry.weight"],
        same["networks.base.net.entry.weight"],
    )


def test_noise_levels() -> None:
    """Empty gamma_min means sigma_ratio of an integer, scale by scale; one number is for all; two
    for three scales are refused."""
    cascade = build(
        ModelConfig(levels=2, channels=(8,), blocks=1, attention=False, gamma_max=(5.0,))
    )
    for spec, schedule in zip(cascade.specs, cascade.schedules):
        assert torch.exp(schedule.gamma_min / 2).item() / spec.gain == pytest.approx(0.15, rel=1e-4)
        assert schedule.gamma_max.item() == pytest.approx(5.0, abs=1e-4)
    with pytest.raises(ValueError, match="gamma_max holds 2 numbers for 3 scales"):
        build(ModelConfig(levels=2, gamma_max=(5.0, 4.0)))


def test_shared_schedules() -> None:
    """One schedule over the widest range; if it is learned, it cannot be trained scale by scale."""
    config = preset("tiny").override({"shared_schedule": True, "schedule": "learned_linear"}).model
    cascade = build(config)
    assert cascade.schedules[0] is cascade.schedules[1] and cascade.schedules[
        0
    ].gamma_max.item() == pytest.approx(5.0)
    assert cascade.scales[1].denoiser.gamma_range == cascade.scales[0].denoiser.gamma_range
    with pytest.raises(ValueError, match="set shared_schedule=false"):
        build(config, scales=["details1"])
    build(
        preset("tiny").override({"shared_schedule": True, "schedule": "linear"}).model,
        scales=["details1"],
    )
    with pytest.raises(ValueError, match="a fitted schedule follows the loss of one scale"):
        build(preset("tiny").override({"shared_schedule": True}).model)


def test_base_of_its_own_size() -> None:
    """`base_channels` and `base_blocks` change the coarsest scale's network alone."""
    config = preset("tiny").override({"base_channels": "16,8", "base_blocks": "2"}).model
    nets = [build(config).scales[i].network.net for i in (0, 1)]
    assert (
        [n.entry.out_channels for n in nets] == [16, 8]
        and len(nets[0].down) == 5
        and len(nets[1].down) == 3
    )


def test_paper_preset_scores_and_takes_a_gradient_step() -> None:
    """Appendix B's networks on small images: they do not depend on the resolution."""
    cascade = build(preset("paper-cifar10", "wavelet").override({"image_shape": "3,8,8"}).model)
    x = torch.randint(
        0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    assert bool(
        torch.isfinite(cascade.eval().bound(x, torch.Generator().manual_seed(1)).total).all()
    )
    for index, (z, coarse) in enumerate(cascade.train().decompose(x)):
        cascade.scales[index](z, coarse, torch.Generator().manual_seed(2)).backward()
        gradients = [
            p.grad for p in cascade.scales[index].denoiser.parameters() if p.grad is not None
        ]
        assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
        assert cascade.schedules[index].start.grad is not None  # Appendix B learns the endpoints
