"""Named configurations: the paper's (Appendix B) and small ones for a laptop, as records that JSON
can hold.

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
from pcdm_lib.maps.standard import make_map
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config, ModelConfig, TrainingConfig
from pcdm_lib.models.preconditioning import PreconditionedDenoiser

# The systems by the key that the shell, presets and files use, with the paper's name for each. The
# map of a system has the same key (maps.MAPS).
SYSTEMS = {"wavelet": "W-PCDM", "laplacian": "LP-PCDM", "standard": "C-VDM", "vdm": "VDM"}


# The small networks by system; the figures behind their widths and depths stand in README, what
# makes the order. The base is a quarter of the pixels, and most of it is learned by few weights: a
# network as costly as the finer scale's takes 1.6 times as long a step for 0.03 bits a dimension.
_SMALL_BASE = {"base_channels": (32, 64), "base_blocks": 1}
_SMALL = {
    "wavelet": {"channels": (48, 64), "blocks": 1} | _SMALL_BASE,
    "laplacian": {"channels": (32, 64, 64), "blocks": 1} | _SMALL_BASE,
    "standard": {"channels": (32, 64, 64), "blocks": 1} | _SMALL_BASE,
    "vdm": {"channels": (32, 64, 64), "blocks": 1},
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
    """What Appendix B sets for one data set: every scale has a network of VDM's kind of this width
    and depth."""

    side: int
    channels: int
    blocks: int
    updates: int
    source: str


_RELEASE = "configurations released with the paper (lihenryhfl/pcdm, commit a72ad34)"
PAPER_SETTINGS = {
    "paper-cifar10": PaperSetting(
        32,
        128,
        32,
        2_000_000,
        f"{_RELEASE}; updates as later work quotes them (Shen, Gan and Ling, Table 1), where the "
        "release has 10 million",
    ),
    "paper-imagenet32": PaperSetting(32, 256, 32, 10_000_000, _RELEASE),
    "paper-imagenet64": PaperSetting(
        64, 256, 64, 10_000_000, f"{_RELEASE}, which has two scales there: S = 3 is the paper's"
    ),
    "paper-imagenet128": PaperSetting(
        128, 256, 64, 10_000_000, "not in the release: the networks of ImageNet 64, with S = 4"
    ),
}
# VDM's CIFAR-10 optimiser and noise levels, which Appendix B takes over for every scale; numbers as
# in the released configuration.
_PAPER_MODEL = {
    "dropout": 0.1,
    "attention": True,
    "preconditioning": "none",
    "features": "vdm",
    "schedule": "learned_linear",
    "shared_schedule": False,
    "gamma_min": (-13.3,),
    "gamma_max": (5.0,),
}
_PAPER_TRAINING: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 2e-4,
    "warmup_steps": 100,
    "lr_decay": "none",
    "ema": 0.9999,
    "flips": False,
}

PRESETS = ("tiny", "small", "edm", *PAPER_SETTINGS)


def preset(
    name: str = "small", system: str = "wavelet", image_shape: tuple[int, int, int] = (3, 32, 32)
) -> Config:
    """A named configuration of a system (`wavelet`, `laplacian`, `standard`, `vdm`).

    `tiny` is for tests, `small` learns in minutes on two cores, `edm` is `small` with the
    preconditioning and the weighting of Karras et al. 2022, for the look of samples; `paper-*` are
    Appendix B's (PAPER_SETTINGS). The number of scales follows the side of the images (LEVELS).

    Source: Appendix B of the paper, for `paper-*`.

    Args:
        name: one of PRESETS.
        system: one of SYSTEMS.
        image_shape: (C, H, W) of the images.

    Returns:
        The configuration; `Config.override` changes fields of it.

    Raises:
        ValueError: for an unknown name, and for a `paper-*` preset with images of another side than
            it was made for.

    Example:
        >>> config = pcdm.preset("small", system="vdm")
        >>> config.model.map, config.model.levels, config.model.image_shape
        ('vdm', 0, (3, 32, 32))
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS) or ':'} one of "
            f"{', '.join(PRESETS)}"
        )
    if system not in SYSTEMS:
        raise ValueError(
            f"unknown system {system!r}{did_you_mean(system, SYSTEMS) or ':'} one of "
            f"{', '.join(SYSTEMS)}"
        )
    levels = 0 if system == "vdm" else LEVELS.get(max(image_shape[1:]), 1)
    model: dict[str, Any] = {
        "map": system,
        "levels": levels,
        "image_shape": tuple(image_shape),
    }
    if name in PAPER_SETTINGS:
        setting = PAPER_SETTINGS[name]
        if tuple(image_shape[1:]) != (setting.side, setting.side):
            fitting = [
                n
                for n, other in PAPER_SETTINGS.items()
                if tuple(image_shape[1:]) == (other.side, other.side)
            ]
            raise ValueError(
                f"preset {name!r} is for {setting.side}x{setting.side} images, got "
                f"{image_shape[1]}x{image_shape[2]}: "
                f"use {' or '.join([*fitting, 'small'])}"
            )
        model |= {"channels": (setting.channels,), "blocks": setting.blocks} | _PAPER_MODEL
        return Config(name, system, ModelConfig(**model), TrainingConfig(**_PAPER_TRAINING))
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


def budget(name: str) -> int | None:
    """The number of updates that belongs to a preset: the paper's for `paper-*`, None for the
    others, which take any budget."""
    return PAPER_SETTINGS[name].updates if name in PAPER_SETTINGS else None


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
        ValueError: for unknown scales, or settings that do not go together.

    Example:
        >>> model = pcdm.build(pcdm.preset("tiny").model, seed=0)
        >>> model.names, model.training
        (('base', 'details1'), True)
    """
    hierarchy = make_map(config.map, config.levels)
    specs = hierarchy.specs(config.image_shape, config.max_value)
    names = [s.name for s in specs]
    unknown = [s for s in scales or () if s not in names]
    if unknown:
        raise ValueError(f"unknown scales {unknown}: this cascade has {names}")
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


def _spread(values: tuple[float, ...], count: int, name: str) -> list[float]:
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} holds {len(values)} numbers for {count} scales: give one for all or one a "
            f"scale"
        )
    return list(values) * (count if len(values) == 1 else 1)
