"""What each setting of a configuration means: the keys of `--set` and of `Config.override`."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, NamedTuple

from pcdm_lib.models.config import Config, ModelConfig, TrainingConfig
from pcdm_lib.models.presets import preset

MEANINGS = {
    # the model
    "map": "hierarchical map: wavelet, laplacian, standard, vdm or direct; --system sets it",
    "levels": "halvings of the image; there is one scale more than that",
    "image_shape": "channels, height, width; the data sets it",
    "max_value": "largest value of a pixel",
    "channels": "widths of the network, one a resolution, finest first",
    "blocks": "residual blocks a resolution",
    "base_channels": "widths of the coarsest scale's network; empty: as channels",
    "base_blocks": "blocks of the coarsest scale's network; 0: as blocks",
    "dropout": "probability of dropout in residual blocks",
    "attention": "self-attention at the lowest resolution",
    "preconditioning": "closed-form estimate that the network corrects: lattice, gaussian or none",
    "features": "further input channels of the network: lattice, vdm or none",
    "inputs": "plain, or whitened by the covariance of the training data",
    "schedule": "noise schedule: linear, learned_linear, monotone or fitted (to the measured loss)",
    "learn_endpoints": "train the ends of a learned schedule too",
    "shared_schedule": "one schedule for all scales",
    "gamma_min": "log noise-to-signal ratio at t = 0, one or one a scale; empty: by sigma_ratio",
    "gamma_max": "log noise-to-signal ratio at t = 1, one or one a scale",
    "sigma_ratio": "noise at t = 0 over the spacing of a scale's integers, if gamma_min is empty",
    # the training
    "batch_size": "images a step, of all processes together",
    "optimiser": "adamw, or muon for hidden convolutions and adamw for the rest",
    "muon_rate": "learning rate of muon",
    "learning_rate": "learning rate of adamw",
    "beta1": "adamw's average of gradients",
    "beta2": "adamw's average of squared gradients",
    "weight_decay": "adamw's decoupled weight decay",
    "warmup_steps": "steps over which the learning rate rises from 0",
    "lr_decay": "none, or cosine: to 0 over the budget",
    "ema": "decay of the weights' exponential moving average",
    "clip": "largest norm of the gradient of a scale",
    "flips": "mirror images at random; right for photographs only",
    "precision": "float32, or bf16: networks under autocast in training; scores are float32",
    "compile": "compile the networks by torch.compile",
    "weighting": "likelihood: the bound itself; edm: for the look of samples, no bound",
}


class Setting(NamedTuple):
    """One setting: its key, its type as text, its value in a configuration, its meaning."""

    key: str
    kind: str
    value: Any
    meaning: str


def settings(config: Config | None = None) -> dict[str, list[Setting]]:
    """All settings of a configuration, under "model" and "training".

    Args:
        config: whose values to show; the preset `small` of the system `wavelet` by default.

    Returns:
        Lists of settings by "model" and "training".

    Example:
        >>> from pcdm_lib.models.settings import settings
        >>> settings()["training"][0].key
        'batch_size'
    """
    config = config or preset()
    return {
        "model": _of(ModelConfig, config.model),
        "training": _of(TrainingConfig, config.training),
    }


def _of(cls: type, record: Any) -> list[Setting]:
    hints = typing.get_type_hints(cls)
    return [
        Setting(f.name, _name(hints[f.name]), getattr(record, f.name), MEANINGS[f.name])
        for f in dataclasses.fields(cls)
    ]


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"{typing.get_args(kind)[0].__name__},..."
    return str(kind.__name__)
