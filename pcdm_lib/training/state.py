"""What a training run is at any moment: its scales, its step and clock, its random streams.

The parts of `Trainer` share it: preparation.py sets it up, trainer.py changes it step by step, and
saving.py writes it to checkpoints and reads it back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pcdm_lib.diffusion.schedule import Schedule
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config
from pcdm_lib.models.preconditioning import PreconditionedDenoiser
from pcdm_lib.models.scale import Scale
from pcdm_lib.training.batches import BatchSampler
from pcdm_lib.training.distributed import Group
from pcdm_lib.training.optimisers import Optimiser


class TrainingDiverged(FloatingPointError):
    """Loss or gradient was not finite. On a CPU the weights before that step were saved; on a GPU,
    where this is seen some steps later, the last checkpoint counts, which holds finite weights."""


@dataclass
class ScaleTrainer:
    """What one scale needs to train.

    Attributes:
        index: of the scale.
        name: of the scale.
        module: its network and schedule.
        ema: their averages.
        optimiser: of `trained`.
        trained: what the optimiser changes.
        sampler: the order of the images.
        generator: of noise and times, on the device.
        flips: which images are mirrored.
        dropout_state: where the dropout stream stands.
        group: the processes that train the scale.
        loss: the module, wrapped where the scale is trained in several processes.
        replicated: parameters whose gradient nobody else averages over the group: a schedule beside
            a sharded network.
    """

    index: int
    name: str
    module: Scale
    ema: Scale
    optimiser: Optimiser
    trained: list[nn.Parameter]
    sampler: BatchSampler
    generator: torch.Generator
    flips: torch.Generator
    dropout_state: Tensor
    group: Group
    loss: nn.Module
    replicated: list[nn.Parameter]

    def streams(self) -> dict[str, Any]:
        """Where the random streams stand; cheap enough for every step.

        Returns:
            Their states by name.
        """
        return {
            "sampler": self.sampler.state_dict(),
            "generator": self.generator.get_state(),
            "flips": self.flips.get_state(),
            "dropout": self.dropout_state,
        }

    def load_streams(self, state: Mapping[str, Any]) -> None:
        """Put the random streams back.

        Args:
            state: what `streams` gave.
        """
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.flips.set_state(state["flips"])
        self.dropout_state = state["dropout"]


@dataclass
class SharedSchedule:
    """A learned schedule that belongs to all scales: its average over training and its own
    optimiser."""

    schedule: Schedule
    ema: Schedule
    optimiser: Optimiser


_Module = TypeVar("_Module", bound=nn.Module)


def average_of(module: _Module) -> _Module:
    """The start of a module's average over training: a copy that takes no gradient.

    Args:
        module: a network or a schedule.

    Returns:
        The copy, in evaluation mode.
    """
    return copy.deepcopy(module).requires_grad_(False).eval()


def network_of(scale: Scale) -> PreconditionedDenoiser:
    """The network of a scale that is trained here; `build` made it.

    Args:
        scale: of the cascade.

    Returns:
        The same object, with its type.
    """
    return cast(PreconditionedDenoiser, scale.network)


def seed_of(*parts: int) -> int:
    """A seed for each of several streams, none of which starts like another.

    Args:
        parts: the run's seed, the scale, the purpose, ...

    Returns:
        An integer of 63 bits.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class RunState:
    """What the parts of `Trainer` have in common: `Trainer.__init__` sets all of it."""

    config: Config
    images: Tensor
    run_dir: Path
    seed: int
    shard: bool
    device: torch.device
    cascade: Cascade
    costs: dict[str, float]  # operations of one image's forward pass, by scale
    header: dict[str, Any]  # what a checkpoint's config.json says, but for step and seconds
    step: int
    seconds: float
    note: str  # one line on a start that was found in run_dir and is begun anew, or empty
    rate: float  # the learning rate of the last step
    torn: bool  # whether some scales are a step ahead of the others
    shared: SharedSchedule | None
    scales: list[ScaleTrainer]
    _sharding: Any  # the module, where it is asked for

    def _fresh_dropout(self, index: int, place: int) -> Tensor:
        """Where the dropout stream of a scale starts: another place for every process of its
        group."""
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(seed_of(self.seed, index, 3, *([place] if place else [])))
            return self._dropout_state()

    def _cuda(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []

    def _dropout_state(self) -> Tensor:
        return (
            torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else torch.get_rng_state()
        )

    def _set_dropout_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(
            state, self.device
        ) if self.device.type == "cuda" else torch.set_rng_state(state)

    def _diverged(self, what: str, kept: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}. {kept} {self.run_dir}; train anew with a lower learning_rate or clip"
        )
