"""Configurations as records that JSON can hold: the model, and how it is trained."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcdm_lib.advice import did_you_mean
from pcdm_lib.diffusion.weighting import WEIGHTINGS

OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class ModelConfig:
    """The map, the networks and the noise levels of a cascade.

    `gamma_min` and `gamma_max` hold one number for all scales or one a scale, coarsest first. Where
    `gamma_min` is empty, it is set scale by scale so that the noise at t = 0 is `sigma_ratio` of
    one unit on the axis of the scale's integers. `base_channels` and `base_blocks` are the coarsest
    scale's network where it is to differ from the others'; empty and 0 where it is not.
    """

    map: str = "wavelet"
    levels: int = 1
    image_shape: tuple[int, int, int] = (3, 32, 32)
    max_value: int = 255
    channels: tuple[int, ...] = (48, 64)
    blocks: int = 2
    base_channels: tuple[int, ...] = ()
    base_blocks: int = 0
    dropout: float = 0.0
    attention: bool = True
    preconditioning: str = "lattice"
    features: str = "lattice"
    inputs: str = "plain"
    schedule: str = "linear"
    learn_endpoints: bool = False
    shared_schedule: bool = False
    gamma_min: tuple[float, ...] = ()
    gamma_max: tuple[float, ...] = (5.0,)
    sigma_ratio: float = 0.15


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser and what goes with it. `lr_decay` is "none" or "cosine" (to zero over the
    budget); `optimiser` is "adamw", or "muon" for the kernels of the hidden convolutions, at
    `muon_rate`, and AdamW for the rest (optimisers.py). `precision` "bf16" runs the networks under
    autocast while they are trained; what is scored is float32. `compile` hands them to
    torch.compile. `weighting` is "likelihood", the bound itself, or "edm", the weights and noise
    levels of Karras et al. 2022 (weighting.py), which are for the look of samples and no bound."""

    batch_size: int = 16
    optimiser: str = "adamw"
    muon_rate: float = 0.02
    learning_rate: float = 5e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup_steps: int = 50
    lr_decay: str = "cosine"
    ema: float = 0.995
    clip: float = 1.0
    flips: bool = True
    precision: str = "float32"
    compile: bool = False
    weighting: str = "likelihood"

    def __post_init__(self) -> None:
        rules = {
            "batch_size": self.batch_size >= 1,
            "learning_rate": self.learning_rate > 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup_steps": self.warmup_steps >= 0,
            "lr_decay": self.lr_decay in ("none", "cosine"),
            "ema": 0 <= self.ema < 1,
            "clip": self.clip > 0,
            "optimiser": self.optimiser in OPTIMISERS,
            "muon_rate": self.muon_rate > 0,
            "weighting": self.weighting in WEIGHTINGS,
            "precision": self.precision in ("float32", "bf16"),
        }
        for name, fine in rules.items():
            if not fine:
                raise ValueError(
                    f"setting {name}={getattr(self, name)!r} makes no sense: see TrainingConfig"
                )


@dataclass(frozen=True)
class Config:
    """A preset's name with its model and training."""

    preset: str
    system: str
    model: ModelConfig
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON; `from_dict` reads it back.

        Returns:
            Dictionaries, tuples, numbers and text.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The configuration that `to_dict` wrote.

        Args:
            data: a dictionary, as JSON holds it.

        Returns:
            The configuration.

        Raises:
            ValueError: for missing or unknown keys.
        """
        try:
            parts = modern_names(data)
            model, training = (
                _record(ModelConfig, parts.pop("model")),
                _record(TrainingConfig, parts.pop("training")),
            )
            return cls(model=model, training=training, **parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a configuration of this version: {error}") from error

    def override(self, changes: Mapping[str, Any]) -> Config:
        """The same with some fields changed, by their names; text is read as the field's type, so
        `channels=32,48` works.

        Args:
            changes: values by the names of fields of the model or the training.

        Returns:
            A new configuration.

        Raises:
            ValueError: for an unknown name, or a value that cannot be read as the field's type.

        Example:
            >>> pcdm.preset("tiny").override({"batch_size": 8, "channels": "32,48"}).model.channels
            (32, 48)
        """
        model: dict[str, Any] = {}
        training: dict[str, Any] = {}
        for key, value in changes.items():
            for record, target in ((self.model, model), (self.training, training)):
                if key in {f.name for f in dataclasses.fields(record)}:
                    target[key] = _parse(type(record), key, value)
                    break
            else:
                known = [f.name for r in (self.model, self.training) for f in dataclasses.fields(r)]
                raise ValueError(
                    f"unknown setting {key!r}{did_you_mean(key, known) or ':'} "
                    f"one of {', '.join(known)}"
                )
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, **model),
            training=dataclasses.replace(self.training, **training),
        )


def modern_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with today's names: before 0.2, VDM's map was "identity".

    Args:
        config: as a file holds it.

    Returns:
        A copy.
    """
    found = dict(config)
    model = found.get("model")
    if isinstance(model, Mapping) and model.get("map") == "identity":
        found["model"] = {**model, "map": "vdm"}
    return found


def _record(cls: type, data: Mapping[str, Any]) -> Any:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _parse(cls: type, key: str, value: Any) -> Any:
    wanted = typing.get_type_hints(cls)[key]
    origin = typing.get_origin(wanted)
    try:
        if origin is tuple:
            item = typing.get_args(wanted)[0]
            parts = (
                [p for p in value.split(",") if p]
                if isinstance(value, str)
                else list(value)
                if not isinstance(value, (int, float))
                else [value]
            )
            if item is int and any(float(p) != int(p) for p in parts):
                raise ValueError("not whole numbers")
            return tuple(item(p) for p in parts)
        if wanted is bool:
            lookup = {"true": True, "false": False, True: True, False: False}
            return lookup[value.lower() if isinstance(value, str) else value]
        if wanted is int and float(value) != int(value):
            raise ValueError("not a whole number")
        return wanted(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        name = wanted if isinstance(wanted, types.GenericAlias) else wanted.__name__
        raise ValueError(f"setting {key}={value!r} cannot be read as {name}") from error


def config_differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Lines `key: expected ..., found ...` where two nested dictionaries differ; lists and tuples
    count as equal.

    Args:
        expected: the one dictionary.
        found: the other.
        prefix: put before every key.

    Returns:
        Lines for a message; none where the two agree.
    """
    lines = []
    for key in sorted({*expected, *found}):
        a, b = expected.get(key, "(nothing)"), found.get(key, "(nothing)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{prefix}{key}.")
        else:
            a, b = (list(v) if isinstance(v, tuple) else v for v in (a, b))
            if a != b:
                lines.append(f"{prefix}{key}: expected {a!r}, found {b!r}")
    return lines
