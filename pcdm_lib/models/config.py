"""Configurations as records that JSON can hold: the model, and how it is trained."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pcdm_lib.advice import did_you_mean
from pcdm_lib.diffusion.weighting import WEIGHTINGS

OPTIMISERS = ("adamw", "muon")
MAX_WIDTH = 65_536  # of a network: one convolution has 144 GiB of weights then
MAX_BLOCKS = 256  # a resolution; the paper has 64
MAX_SIDE = 65_535

# What a setting may be: in words, and the test. Which names there are is checked by whoever takes
# them.
_Rule = tuple[str, Callable[[Any], bool]]


def _whole(least: int, most: int) -> _Rule:
    def fits(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and least <= value <= most

    return f"a whole number from {least} to {most}", fits


def _number(least: float, most: float, *, above: bool = False, below: bool = False) -> _Rule:
    def fits(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least < value if above else least <= value)
            and (value < most if below else value <= most)
        )

    words = f"a number {'above' if above else 'from'} {least:g} {'and' if above else 'to'}"
    return f"{words} {'below' if below else 'at most' if above else ''} {most:g}", fits


def _several(rule: _Rule, least: int, most: int = 64) -> _Rule:
    text, fits = rule
    count = "three of them" if least == most else "one or more" if least else "or none"
    words = f"{text.removeprefix('a ').replace('number', 'numbers', 1)}, {count}"
    return (
        words,
        lambda value: (
            isinstance(value, (tuple, list))
            and least <= len(value) <= most
            and all(fits(item) for item in value)
        ),
    )


def _of(*names: str) -> _Rule:
    return f"one of {', '.join(names)}", lambda value: value in names


_FLAG: _Rule = ("true or false", lambda value: isinstance(value, bool))
_NAME: _Rule = ("a name", lambda value: isinstance(value, str))


def _check(record: Any, rules: Mapping[str, _Rule]) -> None:
    for name, (text, fits) in rules.items():
        value = getattr(record, name)
        if not fits(value):
            raise ValueError(f"setting {name}={_shown(value)}: expected {' '.join(text.split())}")


def _shown(value: Any) -> str:
    """What was given, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


_MODEL_RULES = {
    "levels": _whole(0, 10),
    "image_shape": _several(_whole(1, MAX_SIDE), 3, 3),
    "max_value": _whole(1, 65_535),
    "channels": _several(_whole(1, MAX_WIDTH), 1),
    "blocks": _whole(1, MAX_BLOCKS),
    "base_channels": _several(_whole(1, MAX_WIDTH), 0),
    "base_blocks": _whole(0, MAX_BLOCKS),
    "dropout": _number(0, 1, below=True),
    "gamma_min": _several(_number(-100, 100), 0),
    "gamma_max": _several(_number(-100, 100), 1),
    "sigma_ratio": _number(0, 1000, above=True),
    **dict.fromkeys(("map", "preconditioning", "features", "inputs", "schedule"), _NAME),
    **dict.fromkeys(("attention", "learn_endpoints", "shared_schedule"), _FLAG),
}
_TRAINING_RULES = {
    "batch_size": _whole(1, 1_000_000),
    "optimiser": _of(*OPTIMISERS),
    "muon_rate": _number(0, 1000, above=True),
    "learning_rate": _number(0, 1000, above=True),
    "beta1": _number(0, 1, below=True),
    "beta2": _number(0, 1, below=True),
    "weight_decay": _number(0, 1000),
    "warmup_steps": _whole(0, 1_000_000_000),
    "lr_decay": _of("none", "cosine"),
    "ema": _number(0, 1, below=True),
    "clip": _number(0, 1e9, above=True),
    "precision": _of("float32", "bf16"),
    "weighting": _of(*WEIGHTINGS),
    "flips": _FLAG,
    "compile": _FLAG,
}


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

    def __post_init__(self) -> None:
        _check(self, _MODEL_RULES)


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
        _check(self, _TRAINING_RULES)


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
            ValueError: for missing or unknown keys, and settings that no version has.
        """
        try:
            parts = modern_names(data)
            missing = [key for key in ("preset", "system", "model", "training") if key not in parts]
            if missing:
                raise ValueError(
                    f"not a configuration of this version: it lacks {', '.join(map(repr, missing))}"
                )
            model, training = (
                _record(ModelConfig, parts.pop("model")),
                _record(TrainingConfig, parts.pop("training")),
            )
            for key in ("preset", "system"):
                if not isinstance(parts[key], str):
                    raise ValueError(
                        f"not a configuration of this version: {key}={_shown(parts[key])}"
                    )
            return cls(model=model, training=training, **parts)
        except (AttributeError, KeyError, TypeError) as error:
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
    unknown = sorted({*data} - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(
            f"not a configuration of this version: it has the unknown setting {unknown[0]!r}"
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _parse(cls: type, key: str, value: Any) -> Any:
    wanted = typing.get_type_hints(cls)[key]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
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
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        name = words.get(wanted, "numbers with commas")
        raise ValueError(f"setting {key}={_shown(value)} cannot be read as {name}") from error


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
