"""Configurations: records that survive JSON, settings read from text, and cascades that score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import counts
from pcdm_lib.experiments.experiment import markdown_table
from pcdm_lib.models import Config, ModelConfig, build, preset
from pcdm_lib.models.config import config_differences
from pcdm_lib.models.presets import (
    FULL_SIZE,
    LEVELS,
    PAPER_SETTINGS,
    PRESETS,
    RELEASE_SETTINGS,
    SYSTEMS,
    budget,
)
from pcdm_lib.models.unet import Attention, ResidualBlock, UNet
from pcdm_lib.training import Trainer
from pcdm_lib.training.optimisers import make_optimiser

EVERY = [(name, system) for name in PRESETS for system in SYSTEMS]
SMALL = [(name, system) for name, system in EVERY if name not in FULL_SIZE]
LARGE = [(name, system) for name, system in EVERY if name in FULL_SIZE]

# Typed from Appendix B: scales, width of the base, width of the conditional networks, residual
# blocks each way, updates, the parameters it states in millions.
APPENDIX_B = {
    "paper-cifar10": (2, 128, 64, 32, 2_000_000, (35, 42)),
    "paper-imagenet32": (2, 256, 128, 32, 10_000_000, (65, 70)),
    "paper-imagenet64": (3, 256, 128, 64, 10_000_000, (299, 329)),
    "paper-imagenet128": (4, 256, 128, 64, 10_000_000, (400, 440)),
}
# The same of the code released with the paper, typed from its configs/ and from `WScoreUNet` in its
# nn.py, which halves blocks as well as width: scales, base (width, blocks), others (width, blocks),
# updates, batch.
RELEASE = {
    "release-cifar10": (2, (128, 32), (64, 16), 10_000_000, 32),
    "release-imagenet32": (2, (256, 32), (128, 16), 10_000_000, 128),
    "release-imagenet64": (2, (256, 64), (128, 32), 10_000_000, 128),
}
# Typed from Appendix B: what the network of each scale sees of it, side and channels.
REPRESENTATIONS = {
    ("paper-cifar10", "laplacian"): [(16, 3), (32, 3)],
    ("paper-cifar10", "wavelet"): [(16, 3), (16, 9)],
    ("paper-imagenet32", "laplacian"): [(16, 3), (32, 3)],
    ("paper-imagenet32", "wavelet"): [(16, 3), (16, 9)],
    ("paper-imagenet64", "laplacian"): [(16, 3), (32, 3), (64, 3)],
    ("paper-imagenet64", "wavelet"): [(16, 3), (16, 9), (32, 9)],
    ("paper-imagenet128", "laplacian"): [(16, 3), (32, 3), (64, 3), (128, 3)],
    ("paper-imagenet128", "wavelet"): [(16, 3), (16, 9), (32, 9), (64, 9)],
}


def shape(name: str) -> tuple[int, int, int]:
    """Images that a preset takes: small ones where it takes any."""
    return (3, FULL_SIZE[name].side, FULL_SIZE[name].side) if name in FULL_SIZE else (3, 16, 16)


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


def size(net: UNet) -> tuple[int, int]:
    """Width and residual blocks each way of a network of VDM's kind: one more block on the way up,
    one attention layer between two blocks in the middle, and no other attention."""
    blocks = len(net.down)
    assert len(net.up) == blocks + 1 and isinstance(net.middle_attention, Attention)
    assert sum(isinstance(m, Attention) for m in net.modules()) == 1
    assert sum(isinstance(m, ResidualBlock) for m in net.modules()) == 2 * blocks + 3
    return net.entry.out_channels, blocks


def expected_sizes(name: str, system: str) -> list[tuple[int, int]]:
    """By the typed tables. VDM's one network is the base's; C-VDM has the cascades' networks."""
    if name in APPENDIX_B:
        scales, width, finer, blocks, _, _ = APPENDIX_B[name]
        found = [(width, blocks)] + [(finer, blocks)] * (scales - 1)
    else:
        scales, base, other, _, _ = RELEASE[name]
        found = [base] + [other] * (scales - 1)
    return found[:1] if system == "vdm" else found


@pytest.mark.parametrize(("name", "system"), LARGE)
def test_full_size_networks(name: str, system: str) -> None:
    """Widths, depths and representations as typed; VDM's noise levels, learned; and the counts of
    docs/training.md are those of the networks that are built."""
    config = preset(name, system, shape(name))
    with torch.device("meta"):
        cascade = build(config.model)
    nets = [network.net for network in cascade.networks.values()]
    assert [size(net) for net in nets] == expected_sizes(name, system)
    if (name, system) in REPRESENTATIONS:
        seen = [(spec.view_shape[1], spec.view_shape[0]) for spec in cascade.specs]
        assert seen == REPRESENTATIONS[name, system]
    # a conditional network sees the coarser image beside its scale: 12 channels, or 6
    for net, spec in list(zip(nets, cascade.specs))[1:]:
        waves = 4 * spec.view_shape[0]
        assert net.entry.in_channels - waves == (12 if system == "wavelet" else 6)
    assert config.model.gamma_min == (-13.3,) and config.model.gamma_max == (5.0,)
    assert all(schedule.learned_endpoints for schedule in cascade.schedules)
    total = sum(p.numel() for p in cascade.networks.parameters())
    setting = FULL_SIZE[name]
    assert total == (counts.base(setting) if system == "vdm" else counts.cascade(setting, system))


def test_settings_are_those_of_appendix_b_and_of_the_release() -> None:
    """What is in no network: updates, optimiser, batch, stated parameters."""
    assert list(PAPER_SETTINGS) == list(APPENDIX_B) and list(RELEASE_SETTINGS) == list(RELEASE)
    for name, (*_, updates, stated) in APPENDIX_B.items():
        assert budget(name) == updates and PAPER_SETTINGS[name].stated == stated
        assert "Appendix B" in PAPER_SETTINGS[name].source
    for name, (*_, updates, batch) in RELEASE.items():
        training = preset(name, "wavelet", shape(name)).training
        assert budget(name) == updates and training.batch_size == batch
        assert "a72ad34" in RELEASE_SETTINGS[name].source and not RELEASE_SETTINGS[name].stated
    for name, system in LARGE:
        training = preset(name, system, shape(name)).training
        assert (training.optimiser, training.lr_decay, training.flips) == ("adamw", "none", False)
        assert (training.learning_rate, training.ema) == (2e-4, 0.9999)
        assert (training.beta1, training.beta2, training.weight_decay) == (0.9, 0.99, 0.01)


def test_counts_in_the_documentation() -> None:
    """Both tables of docs/training.md are what `python -m benchmarks.counts` prints, and what the
    text says of them holds."""
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    for rows in (counts.counted(), counts.readings()):
        for line in markdown_table(rows).splitlines():
            assert line in text
    cifar, large = PAPER_SETTINGS["paper-cifar10"], PAPER_SETTINGS["paper-imagenet64"]
    # one reading gives ImageNet 64 to 0.2 % and the first figure of CIFAR-10 to 1 %
    layout = counts.LAYOUTS["finer scales N / 2 each way"]
    pair = counts.PAIRS["cascade of S; of S + 1 scales"]
    assert counts.off(pair(layout(large)), large.stated) < 0.002
    assert pair(layout(cifar))[0] == pytest.approx(35e6, rel=0.01)
    # the systems' networks differ by far less than the figures of Appendix B
    for setting in PAPER_SETTINGS.values():
        systems = [counts.cascade(setting, system) for system in ("wavelet", "laplacian")]
        assert abs(systems[0] - systems[1]) < 0.2e6
        assert counts.cascade(setting, "laplacian") == counts.cascade(setting, "standard")


def test_runs_of_earlier_versions_load() -> None:
    """A stored configuration is its values, whatever its preset is today: before, every network of
    `paper-cifar10` was as wide as the base."""
    today = preset("paper-cifar10", "wavelet")
    stored = json.loads(json.dumps(today.to_dict()))
    stored["model"] |= {"channels": [128], "blocks": 32, "base_channels": [], "base_blocks": 0}
    config = Config.from_dict(stored)
    with torch.device("meta"):
        cascade = build(config.model)
    assert [size(n.net) for n in cascade.networks.values()] == [(128, 32), (128, 32)]
    assert config_differences(today.to_dict(), stored) == [
        "model.base_channels: expected [128], found []",
        "model.channels: expected [64], found [128]",
    ]
    # what resumes such a run
    assert today.override({"channels": "128", "base_channels": ""}) == config


@pytest.mark.parametrize("name", list(PAPER_SETTINGS))
def test_paper_presets_refuse_other_resolutions(name: str) -> None:
    with pytest.raises(ValueError, match=f"preset {name!r} is for .* images, got 48x48: use small"):
        preset(name, "wavelet", (3, 48, 48))
    with pytest.raises(ValueError, match="got 64x64: use paper-imagenet64 or small"):
        preset("paper-cifar10", "wavelet", (3, 64, 64))
    with pytest.raises(ValueError, match="got 64x64: use release-imagenet64 or small"):
        preset("release-cifar10", "wavelet", (3, 64, 64))


@pytest.mark.parametrize(("name", "system"), LARGE)
def test_paper_presets_train_and_score(name: str, system: str, tmp_path) -> None:
    """One update and one evaluation of every preset as it is, but for networks cut down to what a
    test can wait for: maps, scales, schedules, optimiser and dropout are the preset's. (`python -m
    benchmarks.presets` runs them at full size.)"""
    side = FULL_SIZE[name].side
    images_a_batch = 2 if side < 64 else 1
    changes = {"channels": "8", "blocks": 1, "base_channels": "", "base_blocks": 0}
    if side > 64:  # attention over 128x128 places takes minutes
        changes["attention"] = False
    config = preset(name, system, shape(name)).override(changes | {"batch_size": images_a_batch})
    images = torch.randint(
        0,
        256,
        (images_a_batch, 3, side, side),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
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


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_paper_cifar10_at_full_size(system: str) -> None:
    """Nothing cut down but the batch: one update of every network by the preset's optimiser, and
    one evaluation of an image."""
    config = preset("paper-cifar10", system)
    cascade, training = build(config.model), config.training
    x = torch.randint(
        0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    for scale, (z, coarse) in zip(cascade.scales, cascade.train().decompose(x), strict=True):
        optimiser = make_optimiser(
            scale.denoiser,
            training.optimiser,
            training.learning_rate,
            training.muon_rate,
            (training.beta1, training.beta2),
            training.weight_decay,
        )
        scale(z, coarse, torch.Generator().manual_seed(2)).backward()
        gradients = [p.grad for p in scale.denoiser.parameters() if p.grad is not None]
        assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
        assert scale.schedule.start.grad is not None  # the endpoints are learned
        optimiser.step()
        # the exit starts at zero
        assert float(scale.denoiser.net.exit.weight.detach().abs().max()) > 0
        scale.zero_grad(set_to_none=True)
    with torch.no_grad():
        bound = cascade.eval().bound(x, torch.Generator().manual_seed(1))
    assert bound.per_scale.shape == (1, len(expected_sizes("paper-cifar10", system)))
    assert bool(torch.isfinite(bound.per_scale).all()) and float(bound.total) > 0


def test_the_direct_cascade_refuses_what_is_for_diffusion():
    assert preset("small", "direct").model.channels == (64,)
    for name in ("edm", "paper-cifar10"):
        with pytest.raises(ValueError, match="is for diffusion models: the direct cascade has"):
            preset(name, "direct")
    model = preset("tiny", "direct")
    for changes in ({"dropout": 0.1}, {"channels": "8,8"}, {"levels": 1}):
        with pytest.raises(ValueError, match="direct cascade has"):
            build(model.override(changes).model)
    for changes in ({"precision": "bf16"}, {"compile": True}, {"weighting": "edm"}):
        with pytest.raises(ValueError, match="whole numbers in float32"):
            build(model.model).check_training(model.override(changes).training, shard=False)
