"""Configurations: records that survive JSON, settings read from text, and cascades that score."""

from __future__ import annotations

import json

import pytest
import torch

from pcdm_lib.presets import PRESETS, SYSTEMS, Config, ModelConfig, build, differences, preset

EVERY = [(name, system) for name in PRESETS for system in SYSTEMS]


@pytest.mark.parametrize(("name", "system"), EVERY)
def test_json_round_trip(name: str, system: str) -> None:
    config = preset(name, system, (1, 8, 8))
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and differences(again.to_dict(), config.to_dict()) == []
    assert isinstance(again.model.channels, tuple) and hash(again) == hash(config)


@pytest.mark.parametrize(("name", "system"), [e for e in EVERY if e[0] != "paper"])
def test_builds_and_scores(name: str, system: str) -> None:
    """Every small preset scores a batch, in figures that eight bits make plausible before any training."""
    cascade = build(preset(name, system, (3, 16, 16)).model)
    x = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bpd = cascade.bound(x, torch.Generator().manual_seed(0)).total / (768 * 0.6931)
    assert bpd.shape == (2,) and bool(torch.isfinite(bpd).all()) and float(bpd.min()) > 0


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_paper_preset_builds(system: str) -> None:
    """Appendix B: the same VDM network of 31 million parameters a scale, VDM's noise levels, one schedule a scale."""
    config = preset("paper", system)
    with torch.device("meta"):
        cascade = build(config.model)
    assert len(cascade.networks) == len(cascade.specs) == (1 if system == "vdm" else 2)
    for network in cascade.networks.values():
        assert 30e6 < sum(p.numel() for p in network.parameters()) < 32e6
    assert config.model.gamma_min == (-13.3,) and config.model.gamma_max == (5.0,)
    assert all(schedule.learned_endpoints for schedule in cascade.schedules)


def test_override_reads_text() -> None:
    config = preset("tiny").override({"channels": "32,48", "blocks": "3", "attention": "true", "gamma_max": "4.5", "gamma_min": "",
                                      "learning_rate": "1e-3", "schedule": "monotone", "flips": False, "dropout": 0})
    assert config.model.channels == (32, 48) and config.model.blocks == 3 and config.model.attention is True
    assert config.model.gamma_max == (4.5,) and config.model.gamma_min == () and config.training.learning_rate == 1e-3
    assert config.model.schedule == "monotone" and config.training.flips is False and config.model.dropout == 0.0
    assert preset("tiny").override({"gamma_max": 3.0}).model.gamma_max == (3.0,)
    assert preset("tiny").override({}) == preset("tiny")


@pytest.mark.parametrize(("key", "value"), [("blocks", "2.5"), ("blocks", 2.5), ("blocks", "many"), ("attention", "yes"), ("attention", 3),
                                            ("channels", "8,x"), ("channels", "8,8.5"), ("channels", [8, 8.5]), ("learning_rate", "fast"),
                                            ("channels", None)])
def test_override_refuses(key: str, value) -> None:
    with pytest.raises(ValueError, match=f"setting {key}=.* cannot be read as"):
        preset("tiny").override({key: value})


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown setting 'blocs': one of .*blocks"):
        preset("tiny").override({"blocs": 2})
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        preset("huge")
    with pytest.raises(ValueError, match="unknown system 'fourier'"):
        preset("tiny", "fourier")
    with pytest.raises(ValueError, match=r"unknown scales \['detail'\].*details1"):
        build(preset("tiny").model, scales=["detail"])


def test_broken_records() -> None:
    good = preset("tiny").to_dict()
    for broken in ({k: v for k, v in good.items() if k != "model"}, good | {"extra": 1}, good | {"model": good["model"] | {"depth": 3}}):
        with pytest.raises(ValueError, match="not a configuration of this version"):
            Config.from_dict(broken)


def test_differences() -> None:
    """One line a leaf, by its path; tuples equal lists; what is missing is said to be."""
    a, b = preset("tiny").to_dict(), preset("tiny").override({"blocks": 7}).to_dict()
    assert differences(a, b) == ["model.blocks: expected 1, found 7"]
    assert differences({"x": (1, 2)}, {"x": [1, 2]}) == []
    assert differences({"x": 1}, {}) == ["x: expected 1, found '(nothing)'"]
    assert differences({"m": {"x": 1}}, {}) == ["m: expected {'x': 1}, found '(nothing)'"]


def test_weights_depend_on_the_seed_alone() -> None:
    """Not on the global generator, which is left as it was, nor on which other scales are built."""
    config = preset("tiny").model
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(config, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other, alone = build(config, seed=5), build(config, seed=6), build(config, seed=5, scales=["details1"])
    same = dict(second.named_parameters())
    assert all(torch.equal(p, same[name]) for name, p in first.named_parameters())
    assert list(alone.networks) == ["details1"]
    assert all(torch.equal(p, same[name]) for name, p in alone.named_parameters())
    assert not torch.equal(dict(other.named_parameters())["networks.base.net.entry.weight"], same["networks.base.net.entry.weight"])


def test_noise_levels() -> None:
    """Empty gamma_min means sigma_ratio of an integer, scale by scale; one number is for all; two for three scales are refused."""
    cascade = build(ModelConfig(levels=2, channels=(8,), blocks=1, attention=False, gamma_max=(5.0,)))
    for spec, schedule in zip(cascade.specs, cascade.schedules):
        assert torch.exp(schedule.gamma_min / 2).item() / spec.gain == pytest.approx(0.15, rel=1e-4)
        assert schedule.gamma_max.item() == pytest.approx(5.0, abs=1e-4)
    with pytest.raises(ValueError, match="gamma_max holds 2 numbers for 3 scales"):
        build(ModelConfig(levels=2, gamma_max=(5.0, 4.0)))


def test_shared_schedules() -> None:
    """One schedule over the widest range; if it is learned, it cannot be trained scale by scale."""
    config = preset("tiny").override({"shared_schedule": True, "schedule": "learned_linear"}).model
    cascade = build(config)
    assert cascade.schedules[0] is cascade.schedules[1] and cascade.schedules[0].gamma_max.item() == pytest.approx(5.0)
    assert cascade.denoiser(1).gamma_range == cascade.denoiser(0).gamma_range
    with pytest.raises(ValueError, match="set shared_schedule=false"):
        build(config, scales=["details1"])
    build(preset("tiny").override({"shared_schedule": True, "schedule": "linear"}).model, scales=["details1"])
    with pytest.raises(ValueError, match="a fitted schedule follows the loss of one scale"):
        build(preset("tiny").override({"shared_schedule": True}).model)


def test_base_of_its_own_size() -> None:
    """`base_channels` and `base_blocks` change the coarsest scale's network alone."""
    config = preset("tiny").override({"base_channels": "16,8", "base_blocks": "2"}).model
    nets = [build(config).denoiser(i).net for i in (0, 1)]
    assert [n.entry.out_channels for n in nets] == [16, 8] and len(nets[0].down) == 5 and len(nets[1].down) == 3


def test_paper_preset_scores_and_takes_a_gradient_step() -> None:
    """Appendix B's networks on small images: they do not depend on the resolution."""
    cascade = build(preset("paper", "wavelet", (3, 8, 8)).model)
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert bool(torch.isfinite(cascade.eval().bound(x, torch.Generator().manual_seed(1)).total).all())
    for index, (z, coarse) in enumerate(cascade.train().decompose(x)):
        cascade.loss(index, z, coarse, torch.Generator().manual_seed(2)).backward()
        gradients = [p.grad for p in cascade.denoiser(index).parameters() if p.grad is not None]
        assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
        assert cascade.schedules[index].start.grad is not None  # Appendix B learns the endpoints
