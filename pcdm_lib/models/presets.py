"""Named configurations as records that JSON can hold: the paper's (Appendix B), those of the code
released with it, and small ones for a laptop.

A configuration says everything that shapes the weights: the model, and how it is trained. The
budget, the device and the folder are not part of it.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

import torch

from pcdm_lib.advice import did_you_mean
from pcdm_lib.diffusion.schedule import make_schedule
from pcdm_lib.diffusion.terms import gamma_for_spacing
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.standard import make_map
from pcdm_lib.models import memory
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config, ModelConfig, TrainingConfig
from pcdm_lib.models.direct_cascade import NAME as DIRECT
from pcdm_lib.models.direct_cascade import Levels, build_direct
from pcdm_lib.models.preconditioning import PreconditionedDenoiser

# The systems by the key that the shell, presets and files use, with the paper's name for each. The
# map of a system has the same key (maps.MAPS).
SYSTEMS = {"wavelet": "W-PCDM", "laplacian": "LP-PCDM", "standard": "C-VDM", "vdm": "VDM"}
# With the one that the paper leaves open: a cascade without latents (models/direct.py).
EVERY_SYSTEM = SYSTEMS | {DIRECT: "direct cascade"}


# The small networks by system; the figures behind their widths and depths stand in
# docs/results.md, "What makes the order". The base is a quarter of the pixels, and most of it is
# learned by few weights: a network as costly as the finer scale's takes 1.6 times as long a step
# for 0.03 bits a dimension.
_SMALL_BASE = {"base_channels": (32, 64), "base_blocks": 1}
_SMALL = {
    "wavelet": {"channels": (48, 64), "blocks": 1} | _SMALL_BASE,
    "laplacian": {"channels": (32, 64, 64), "blocks": 1} | _SMALL_BASE,
    "standard": {"channels": (32, 64, 64), "blocks": 1} | _SMALL_BASE,
    "vdm": {"channels": (32, 64, 64), "blocks": 1},
}
_DIRECT: dict[str, dict[str, Any]] = {
    "tiny": {"channels": (16,), "blocks": 1},
    "small": {"channels": (64,), "blocks": 3},
}
_LEARNING = {"inputs": "whitened", "schedule": "fitted"}
_TINY = {"channels": (8, 8), "blocks": 1, "attention": False}
# Detail coefficients vary far less than the base, so less noise hides them: gamma_max of the base
# and of each finer scale.
_GAMMA_MAX = {
    "wavelet": (5.0, 3.0),
    "laplacian": (5.0, 3.0),
    "standard": (5.0, 5.0),
    "vdm": (5.0, 5.0),
}
# S - 1 by the side of the image, as Appendix B has it; images of other sides are halved once.
LEVELS = {32: 1, 64: 2, 128: 3}
# Karras et al. 2022, Table 1: their preconditioning is the Gaussian one, and their input and noise
# embedding know no lattice.
_EDM = {"preconditioning": "gaussian", "features": "none", "inputs": "plain", "schedule": "linear"}


@dataclass(frozen=True)
class PaperSetting:
    """What is set for one data set: the networks of a cascade and the updates of its training.

    `channels` and `blocks` are the width of the networks of the finer scales and their residual
    blocks each way; `base_channels` and `base_blocks` are those of the coarsest scale, whose
    network is VDM's. Every network has one attention layer and two more blocks in the middle.
    `stated` holds the numbers of parameters that Appendix B gives, in millions; empty where there
    are none. `source` says where the figures are from.
    """

    side: int
    scales: int
    base_channels: int
    base_blocks: int
    channels: int
    blocks: int
    batch_size: int
    updates: int
    source: str
    stated: tuple[int, ...] = ()


_REST = (
    "scales, widths, blocks and updates of Appendix B, {}; batch and what else it does not say as "
    "in VDM's released configuration"
)
# in the order of the fields: side, scales, base, finer scales, batch, updates
PAPER_SETTINGS = {
    "paper-cifar10": PaperSetting(
        32, 2, 128, 32, 64, 32, 128, 2_000_000, _REST.format("CIFAR10"), (35, 42)
    ),
    "paper-imagenet32": PaperSetting(
        32, 2, 256, 32, 128, 32, 128, 10_000_000, _REST.format("ImageNet32"), (65, 70)
    ),
    "paper-imagenet64": PaperSetting(
        64, 3, 256, 64, 128, 64, 128, 10_000_000, _REST.format("ImageNet64"), (299, 329)
    ),
    "paper-imagenet128": PaperSetting(
        128, 4, 256, 64, 128, 64, 128, 10_000_000, _REST.format("ImageNet128"), (400, 440)
    ),
}
# Two scales everywhere. `WScoreUNet` in nn.py halves width and blocks of every scale but the
# coarsest; Appendix B speaks of half the width only.
_RELEASE = "code released with the paper (lihenryhfl/pcdm, commit a72ad34): nn.py and {}"
RELEASE_SETTINGS = {
    "release-cifar10": PaperSetting(
        32, 2, 128, 32, 64, 16, 32, 10_000_000, _RELEASE.format("configs/cifar10.py")
    ),
    "release-imagenet32": PaperSetting(
        32, 2, 256, 32, 128, 16, 128, 10_000_000, _RELEASE.format("configs/imagenet32.py")
    ),
    "release-imagenet64": PaperSetting(
        64, 2, 256, 64, 128, 32, 128, 10_000_000, _RELEASE.format("configs/imagenet64.py")
    ),
}
# Optimiser and noise levels of VDM's CIFAR-10 configuration, which Appendix B follows and the
# release repeats.
_PAPER_MODEL = {
    "dropout": 0.1,
    "attention": True,
    "preconditioning": "none",
    "features": "vdm",
    "schedule": "learned_linear",
    "gamma_min": (-13.3,),
    "gamma_max": (5.0,),
}
_PAPER_TRAINING: dict[str, Any] = {
    "learning_rate": 2e-4,
    "warmup_steps": 100,
    "lr_decay": "none",
    "ema": 0.9999,
    "flips": False,
}

# The presets at the paper's size: each is for one side of images and has a budget of its own.
FULL_SIZE = PAPER_SETTINGS | RELEASE_SETTINGS
PRESETS = ("tiny", "small", "edm", *FULL_SIZE)


def preset(
    name: str = "small", system: str = "wavelet", image_shape: tuple[int, int, int] = (3, 32, 32)
) -> Config:
    """A named configuration of a system (`wavelet`, `laplacian`, `standard`, `vdm`, `direct`).

    `tiny` is for tests, `small` learns in minutes on two cores, `edm` is `small` with the
    preconditioning and the weighting of Karras et al. 2022, for the look of samples; `paper-*` are
    Appendix B's (PAPER_SETTINGS) and `release-*` those of the code released with the paper
    (RELEASE_SETTINGS). The number of scales follows the side of the images (LEVELS), but for
    `release-*`.

    Source: Appendix B of the paper for `paper-*`, the released code for `release-*`.

    Args:
        name: one of PRESETS.
        system: one of SYSTEMS.
        image_shape: (C, H, W) of the images.

    Returns:
        The configuration; `Config.override` changes fields of it.

    Raises:
        ValueError: for an unknown name, and for a `paper-*` or `release-*` preset with images of
            another side than it was made for.

    Example:
        >>> config = pcdm.preset("small", system="vdm")
        >>> config.model.map, config.model.levels, config.model.image_shape
        ('vdm', 0, (3, 32, 32))
        >>> paper = pcdm.preset("paper-cifar10").model
        >>> paper.base_channels, paper.channels, paper.blocks
        ((128,), (64,), 32)
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS) or ':'} one of "
            f"{', '.join(PRESETS)}"
        )
    if system not in EVERY_SYSTEM:
        raise ValueError(
            f"unknown system {system!r}{did_you_mean(system, EVERY_SYSTEM) or ':'} one of "
            f"{', '.join(EVERY_SYSTEM)}"
        )
    if system == DIRECT:
        return _direct(name, image_shape)
    if name in FULL_SIZE:
        return _full_size(name, system, tuple(image_shape))
    levels = 0 if system == "vdm" else LEVELS.get(max(image_shape[1:]), 1)
    model: dict[str, Any] = {
        "map": system,
        "levels": levels,
        "image_shape": tuple(image_shape),
    }
    base, finer = _GAMMA_MAX[system]
    model |= {"gamma_max": (base,) if base == finer else (base, *[finer] * levels)}
    model |= _LEARNING | (_TINY if name == "tiny" else _SMALL[system])
    if name == "edm":
        return Config(
            name,
            system,
            ModelConfig(**model | _EDM),
            TrainingConfig(optimiser="muon", weighting="edm"),
        )
    return Config(name, system, ModelConfig(**model), TrainingConfig(optimiser="muon"))


def _direct(name: str, image_shape: tuple[int, int, int]) -> Config:
    """A preset of the direct cascade; its settings were measured (docs/direct.md)."""
    if name not in _DIRECT:
        raise ValueError(
            f"preset {name!r} is for diffusion models: the direct cascade has "
            f"{' and '.join(_DIRECT)}"
        )
    channels, height, width = image_shape
    model = ModelConfig(DIRECT, 0, (channels, height, width), **_DIRECT[name])
    return Config(name, DIRECT, model, TrainingConfig(optimiser="muon", learning_rate=0.02))


def _full_size(name: str, system: str, image_shape: tuple[int, ...]) -> Config:
    """A preset of FULL_SIZE. VDM has one scale, whose network is the base's: Appendix B builds the
    base "identically" to VDM's. C-VDM's networks are those of the other cascades: Appendix C
    changes the map alone."""
    setting = FULL_SIZE[name]
    if image_shape[1:] != (setting.side, setting.side):
        alike = PAPER_SETTINGS if name in PAPER_SETTINGS else RELEASE_SETTINGS
        fitting = [n for n, s in alike.items() if image_shape[1:] == (s.side, s.side)]
        raise ValueError(
            f"preset {name!r} is for {setting.side}x{setting.side} images, got "
            f"{image_shape[1]}x{image_shape[2]}: use {' or '.join([*fitting, 'small'])}"
        )
    model: dict[str, Any] = {"map": system, "image_shape": image_shape} | _PAPER_MODEL
    if system == "vdm":
        model |= {
            "levels": 0,
            "channels": (setting.base_channels,),
            "blocks": setting.base_blocks,
        }
    else:
        model |= {
            "levels": setting.scales - 1,
            "channels": (setting.channels,),
            "blocks": setting.blocks,
            "base_channels": (setting.base_channels,),
            "base_blocks": setting.base_blocks if setting.base_blocks != setting.blocks else 0,
            # the release has one schedule for all scales; Appendix B does not say
            "shared_schedule": name in RELEASE_SETTINGS,
        }
    training = TrainingConfig(batch_size=setting.batch_size, **_PAPER_TRAINING)
    return Config(name, system, ModelConfig(**model), training)


def map_of(config: ModelConfig) -> HierarchicalMap:
    """The map of a configuration; its names are those of the scales that are trained.

    Args:
        config: the model.

    Returns:
        The map.
    """
    return Levels() if config.map == DIRECT else make_map(config.map, config.levels)


def budget(name: str) -> int | None:
    """The number of updates that belongs to a preset: its own for `paper-*` and `release-*`, None
    for the others, which take any budget."""
    return FULL_SIZE[name].updates if name in FULL_SIZE else None


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Trained numbers of every scale's network, by its name, without building it in memory."""
    with torch.device("meta"):
        cascade = build(config)
    return {
        name: sum(p.numel() for p in network.parameters())
        for name, network in cascade.networks.items()
    }


def build(
    config: ModelConfig, seed: int = 0, scales: typing.Sequence[str] | None = None
) -> Cascade:
    """The cascade of a configuration with freshly initialised networks.

    Args:
        config: the model, the `model` of a `Config`.
        seed: seed of the initial weights; the global random state is left as it was. A scale's
            weights do not depend on which other scales are built.
        scales: names of the scales to build a network for; all by default.

    Returns:
        The cascade, on the CPU and in training mode.

    Raises:
        ValueError: for unknown scales, settings that do not go together, or networks that are
            larger than the memory of this machine.

    Example:
        >>> model = pcdm.build(pcdm.preset("tiny").model, seed=0)
        >>> model.names, model.training
        (('base', 'details1'), True)
    """
    if config.map == DIRECT:
        _check_scales(Levels().names(), scales)
        if torch.get_default_device().type != "meta":  # where nothing takes memory
            memory.check_weights(config, scales)
        return build_direct(config, seed, scales)
    hierarchy = make_map(config.map, config.levels)
    specs = hierarchy.specs(config.image_shape, config.max_value)
    names = hierarchy.names()
    _check_scales(names, scales)
    if config.shared_schedule and config.schedule == "fitted":
        raise ValueError(
            "a fitted schedule follows the loss of one scale: set shared_schedule=false, or "
            "another schedule"
        )
    if (
        config.shared_schedule
        and (config.schedule != "linear")
        and scales is not None
        and len(scales) < len(names)
    ):
        raise ValueError(
            "a learned schedule that all scales share cannot be trained scale by scale: set "
            "shared_schedule=false"
        )
    if torch.get_default_device().type != "meta":  # where nothing takes memory
        memory.check_weights(config, scales)
    lowest = config.gamma_min or tuple(gamma_for_spacing(s, config.sigma_ratio) for s in specs)
    lows = _spread(lowest, len(specs), "gamma_min")
    highs = _spread(config.gamma_max, len(specs), "gamma_max")
    if config.shared_schedule:
        lows, highs = [min(lows)] * len(specs), [max(highs)] * len(specs)
    schedules = [
        make_schedule(config.schedule, low, high, config.learn_endpoints)
        for low, high in zip(lows, highs)
    ]
    denoisers: list[PreconditionedDenoiser | None] = []
    for spec, low, high in zip(specs, lows, highs):
        if scales is not None and spec.name not in scales:
            denoisers.append(None)
            continue
        with torch.random.fork_rng(devices=[]):
            # the CPU's alone: networks are made there
            torch.default_generator.manual_seed(seed + 1_000_003 * spec.index)
            denoisers.append(
                PreconditionedDenoiser(
                    hierarchy,
                    spec,
                    (low, high),
                    config.preconditioning,
                    config.features,
                    config.inputs,
                    channels=(config.base_channels if spec.index == 0 else ()) or config.channels,
                    blocks=(config.base_blocks if spec.index == 0 else 0) or config.blocks,
                    dropout=config.dropout,
                    attention=config.attention,
                )
            )
    return Cascade(
        hierarchy,
        config.image_shape,
        denoisers,
        schedules[0] if config.shared_schedule else schedules,
        config.max_value,
    )


def _check_scales(names: typing.Sequence[str], wanted: typing.Sequence[str] | None) -> None:
    unknown = [s for s in wanted or () if s not in names]
    if unknown:
        raise ValueError(f"unknown scales {unknown}: this cascade has {[*names]}")


def _spread(values: tuple[float, ...], count: int, name: str) -> list[float]:
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} holds {len(values)} numbers for {count} scales: give one for all or one a "
            f"scale"
        )
    return list(values) * (count if len(values) == 1 else 1)
