"""What a checkpoint says of itself, checked key by key before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcdm_lib import records
from pcdm_lib.models.config import Config
from pcdm_lib.models.presets import map_of

_KINDS: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "config": ("the settings of the model", dict),
    "data": ("the facts of its images", dict),
    "scales": ("the names of the scales", list),
    "step": ("a whole number", int),
    "seconds": ("a number", (int, float)),
    "seed": ("a whole number", int),
}


def read_header(folder: Path | str) -> dict[str, Any]:
    """The config.json of a checkpoint, with all its keys.

    Args:
        folder: of the checkpoint.

    Returns:
        The header as JSON holds it.

    Raises:
        ValueError: as `check_header`, and where the file is missing or no JSON.
    """
    path = Path(folder) / "config.json"
    return check_header(records.read_json(path), path)


def check_header(header: Any, path: Path) -> dict[str, Any]:
    """A header that has every key, each with what belongs there.

    Args:
        header: as JSON holds it.
        path: of the file, for the message.

    Returns:
        The header.

    Raises:
        ValueError: naming the file and the key, where one is missing or holds something else.
    """
    again = "it was edited or is of another version; restore the file that training wrote"
    if not isinstance(header, dict):
        raise ValueError(f"{path} does not describe a checkpoint: {again}")
    for key, (what, kind) in _KINDS.items():
        if key not in header:
            raise ValueError(f"{path} lacks the key {key!r} ({what}): {again}")
        value = header[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path} has {key}={repr(value)[:60]}, expected {what}: {again}")
    if not (header["step"] >= 0 and 0 <= header["seconds"] < math.inf):
        raise ValueError(f"{path} has a step or seconds below 0 or without end: {again}")
    try:
        model = Config.from_dict(header["config"]).model
        names = map_of(model).names()
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}: {again}") from error
    strange = [name for name in header["scales"] if name not in names]
    if strange:
        raise ValueError(
            f"{path} names the scale {repr(strange[0])[:60]}, the model has {', '.join(names)}: "
            f"{again}"
        )
    return header
