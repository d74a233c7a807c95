"""What a finer scale makes of the coarser image: the same cascade with another image shown to its
networks, or none.

Only the image that a network is *shown* changes (`condition_image`, Eqs. 43-44). Which integers a
scale can hold, and so the decoder and the preconditioning, still follows from the true coarser
integers, which a receiver has by then. So every figure stays the length of a message that can
be decoded: of images sent together, all coarser scales first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.models import checkpoints
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.preconditioning import PreconditionedDenoiser
from pcdm_lib.training.trainer import Trainer

Change = Callable[[Tensor], Tensor]  # coarser integers (N, C, h, w) -> those that are shown instead


def nothing(coarse: Tensor) -> Tensor:
    """A black image for every one."""
    return torch.zeros_like(coarse)


def another(coarse: Tensor) -> Tensor:
    """For every image of the batch that of the one before it, and the last one's for the first: so
    figures depend on the batches that images are scored in. Raises ValueError for a batch of
    one."""
    if len(coarse) < 2:
        raise ValueError("one image has no other beside it: score two or more in a batch")
    return coarse.roll(1, dims=0)


def showing(hierarchy: HierarchicalMap, change: Change) -> HierarchicalMap:
    """The map with another conditioning image; all else as it is."""
    other = copy.copy(hierarchy)
    # on this one object: the class and its other methods stay
    vars(other)["condition_image"] = lambda spec, coarse: hierarchy.condition_image(
        spec, change(coarse)
    )
    return other


def shown(cascade: Cascade, change: Change) -> Cascade:
    """A cascade of the same weights and schedules whose networks are shown `change` of the coarser
    image."""
    networks: list[nn.Module | None] = []
    for spec in cascade.specs:
        if spec.name not in cascade.networks:
            networks.append(None)
            continue
        network = cast(PreconditionedDenoiser, copy.copy(cascade.networks[spec.name]))
        network.map = showing(network.map, change)
        networks.append(network)
    schedules = [scale.schedule for scale in cascade.scales]
    return Cascade(cascade.map, cascade.image_shape, networks, schedules, cascade.max_value)


def train_shown(trainer: Trainer, change: Change) -> Trainer:
    """The same trainer, whose networks are shown `change` of the coarser image from now on. Its
    checkpoints say so by the function's name: only `load_shown` loads them, and they cannot be
    resumed."""
    for scale in trainer.scales:
        for module in (scale.module, scale.ema):
            network = cast(PreconditionedDenoiser, module.network)
            network.map = showing(network.map, change)
    trainer.header["shown"] = change.__name__
    return trainer


def load_shown(change: Change, *run_dirs: Path | str) -> Cascade:
    """The cascade of runs of which some were trained by `train_shown` with this change; its
    networks are shown it again, all of them. Errors are those of `checkpoints.load_cascade`, also
    where a run was shown something else."""
    return shown(checkpoints.load_cascade(*run_dirs, shown=change.__name__)[0], change)
