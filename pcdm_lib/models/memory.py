"""Whether a network fits into this machine, before it is made: a system that runs out of memory may
end the process without a word."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pcdm_lib.maps.standard import make_map
from pcdm_lib.models.config import ModelConfig
from pcdm_lib.models.direct_cascade import NAME as DIRECT
from pcdm_lib.models.direct_cascade import Levels

_FLOAT = 4  # bytes
# of each weight in training: itself, its average, its gradient, one moment of the optimiser or more
_COPIES = 4


def machine_bytes() -> int | None:
    """The memory of this machine in bytes, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def least_weights(config: ModelConfig, scales: Sequence[str] | None = None) -> int:
    """A lower bound of the trained numbers of a configuration, from its widths and blocks.

    Args:
        config: the model.
        scales: names of the scales that have a network, all by default.

    Returns:
        The weights of the convolutions of the residual blocks: two of 3x3 in each. A U-Net has as
        many blocks on the way up as on the way down; the trunk of a direct cascade has one way.

    Example:
        >>> from pcdm_lib.models import memory, presets
        >>> config = presets.preset("tiny").model
        >>> memory.least_weights(config) < sum(presets.parameter_counts(config).values())
        True
    """
    ways = 1 if config.map == DIRECT else 2
    return sum(
        ways * blocks * 2 * 9 * width**2
        for widths, blocks in _networks(config, scales)
        for width in widths
    )


def check_weights(config: ModelConfig, scales: Sequence[str] | None = None) -> None:
    """Refuse networks whose weights alone are more than the memory of this machine.

    Args:
        config: the model.
        scales: names of the scales that have a network, all by default.

    Raises:
        ValueError: saying how much they take.
    """
    _check(_FLOAT * least_weights(config, scales), "the networks", "channels or blocks")


def check_training(
    config: ModelConfig,
    batch: int,
    scales: Sequence[str] | None = None,
    room: int | None = None,
) -> None:
    """Refuse a training that cannot fit, before the images are read.

    Args:
        config: the model.
        batch: images of one process in a step.
        scales: names of the scales to train, all by default.
        room: bytes of memory of the device; those of this machine by default.

    Raises:
        ValueError: saying how much it takes at least, and what to make smaller.
    """
    weights = _COPIES * _FLOAT * least_weights(config, scales)
    _check(weights, "training these networks", "channels or blocks", room)
    sides = config.image_shape[1] * config.image_shape[2]
    if config.map == DIRECT:
        pixels = 1  # a step takes some blocks of some levels, as they are dealt
    else:
        pixels = sides if len(_names(config)) == 1 else sides >> 2 * config.levels
    # each residual block keeps an output for its gradient; of the coarsest scale's pixels at least
    kept = max(
        (2 * blocks * widths[0] * max(1, pixels) for widths, blocks in _networks(config, scales)),
        default=0,
    )
    _check(weights + _FLOAT * kept * batch, f"training with batch_size={batch}", "batch_size", room)


def _networks(
    config: ModelConfig, scales: Sequence[str] | None
) -> list[tuple[tuple[int, ...], int]]:
    """Widths and blocks of the network of each scale."""
    found = [
        ((config.base_channels, config.base_blocks) if index == 0 else ((), 0))
        for index, name in enumerate(_names(config))
        if scales is None or name in scales
    ]
    return [(widths or config.channels, blocks or config.blocks) for widths, blocks in found]


def _names(config: ModelConfig) -> tuple[str, ...]:
    """Of the scales that are trained."""
    if config.map == DIRECT:
        return Levels().names()
    return make_map(config.map, config.levels).names()


def _check(wanted: int, what: str, smaller: str, room: int | None = None) -> None:
    room = machine_bytes() if room is None else room
    if room is not None and wanted > room:
        raise ValueError(
            f"{what} takes at least {wanted / 2**30:.4g} GiB of memory, and there are "
            f"{room / 2**30:.4g}: make {smaller} smaller"
        )
