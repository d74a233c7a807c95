"""The direct cascade as a system beside the diffusion cascades: the same training, files and
commands, and a likelihood that is exact instead of bounded.

Its one trained part is called "levels", because all levels of the image share a network
(models/direct.py). What it scores is told apart by level: "base", the coarsest details, and so on
to "details1".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from pcdm_lib.diffusion.schedule import Schedule
from pcdm_lib.maps.scales import Scales, ScaleSpec
from pcdm_lib.maps.standard import Identity
from pcdm_lib.models.cascade import Bound, Cascade, Samples
from pcdm_lib.models.config import ModelConfig, TrainingConfig
from pcdm_lib.models.direct import Deal, DirectNetwork, depth
from pcdm_lib.models.scale import Scale
from pcdm_lib.models.unfolding import draw, unfold

NAME = "direct"  # of the system, and of its map in configurations
SCALE = "levels"


class Levels(Identity):
    """The image as one part that is trained; its levels are the network's own.

    Example:
        >>> from pcdm_lib.models.direct_cascade import Levels
        >>> Levels().names()
        ('levels',)
    """

    name = NAME

    def _specs(self, image_shape: tuple[int, int, int], max_value: int) -> tuple[ScaleSpec, ...]:
        (spec,) = super()._specs(image_shape, max_value)
        return (dataclasses.replace(spec, name=SCALE),)


class NoNoise(Schedule):
    """What stands where a diffusion has its noise levels: nothing, with no weights."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.learned_endpoints = False

    def progress(self, t: Tensor) -> NoReturn:
        raise ValueError("a direct cascade has no noise levels: its likelihood is exact")


class DirectScale(Scale):
    """The network of all levels. Called, it gives its training loss: -log P of the images."""

    def forward(
        self,
        z: Tensor,
        coarse: Tensor | None,
        generator: torch.Generator,
        part: tuple[int, int] = (0, 1),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """An unbiased draw of -log P in nats a dimension, mean over the batch: one phase of every
        level an image.

        Args:
            z: integers (N, C, H, W), the images.
            coarse: None.
            generator: of phases and level.
            part: as for `Scale.forward`.
            dtype: of the distributions.

        Returns:
            A scalar.
        """
        place, parts = part
        count = parts * len(z)
        turn = int(torch.randint(1 << 30, (1,), generator=generator, device=z.device))
        order = torch.randperm(count, generator=generator, device=z.device)
        rows = order[place * len(z) : (place + 1) * len(z)]
        nats = self._direct(z, Deal(rows + turn, turn >> 2), dtype)
        return nats.sum(dim=1).mean() / self.spec.dims

    @property
    def _direct(self) -> DirectNetwork:
        return cast(DirectNetwork, self.network)

    def once(self, z: Tensor, coarse: Tensor | None) -> None:
        self._direct(z)

    def fit(self, z: Tensor, coarse: Tensor | None) -> None:
        """Nothing of it is measured on the images before training.

        Args:
            z: the images.
            coarse: None.
        """

    def terms(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("a direct cascade has no terms of a bound: evaluate gives -log P itself")


class DirectCascade(Cascade):
    """A cascade whose conditionals are exact.

    Args:
        network: of all levels; None where another process trains it.
        image_shape: (C, H, W).
        max_value: the largest value of a pixel.

    Example:
        >>> model = pcdm.build(pcdm.preset("tiny", "direct", (3, 8, 8)).model)
        >>> model.parts
        ('base', 'details3', 'details2', 'details1')
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> model.bound(images, torch.Generator()).total.shape  # no draws: -log P itself
        torch.Size([2])
    """

    exact = True
    scale_type = DirectScale

    def __init__(
        self, network: DirectNetwork | None, image_shape: tuple[int, int, int], max_value: int = 255
    ):
        super().__init__(Levels(), image_shape, [network], NoNoise(), max_value)

    @property
    def parts(self) -> tuple[str, ...]:
        count = depth(*self.image_shape[1:])
        return ("base", *(f"details{number}" for number in range(count, 0, -1)))

    @property
    def network(self) -> DirectNetwork:
        """The network of all levels; KeyError where there is none."""
        return cast(DirectNetwork, self.scales[0].denoiser)

    def check_diffusion(self, what: str) -> None:
        raise ValueError(
            f"{what} needs a diffusion model; the likelihood of a direct cascade is exact already: "
            f"use evaluate"
        )

    def check_training(self, training: TrainingConfig, shard: bool) -> None:
        refused = {
            "precision=bf16": training.precision != "float32",
            "compile=true": training.compile,
            "weighting=edm": training.weighting != "likelihood",
            "--shard": shard,
        }
        for setting, given in refused.items():
            if given:
                raise ValueError(
                    f"{setting} is for diffusion models; the direct cascade computes with whole "
                    f"numbers in float32: leave it out"
                )

    def with_schedules(self, schedules: Sequence[Schedule]) -> NoReturn:
        raise ValueError("a direct cascade has no noise schedules")

    def bound(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        scales: Sequence[int] | None = None,
        times: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Bound:
        """-log P of every image, part by part. Nothing is drawn, so generator and times are not
        looked at.

        Args:
            x: integer images (N, *image_shape).
            generator: of no consequence.
            steps: None.
            scales: None.
            times: of no consequence.
            dtype: of no consequence: the distributions are always computed in float64.

        Returns:
            Nats in `reconstruction`; the other terms are 0.

        Raises:
            ValueError: for steps, which only a diffusion has, or images of another shape.
        """
        if steps is not None or scales is not None:
            raise ValueError("a direct cascade has no steps and one network: leave --steps out")
        ((z, _),) = self.decompose(x)
        nats = self.network(z, dtype=torch.float64)
        return Bound(self.parts, torch.zeros_like(nats), torch.zeros_like(nats), nats)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[], None] | None = None,
    ) -> Samples:
        """n images, drawn integer by integer.

        Args:
            n: how many images.
            steps: of no consequence: the draws are exact.
            generator: of the draws, on `device`.
            device: where the network is.
            dtype: of no consequence.
            on_step: called after every level.

        Returns:
            The images, and the sums of the blocks of every level.

        Raises:
            ValueError: for n below 1.
        """
        if n < 1:
            raise ValueError(f"sample needs n >= 1, got {n}")
        generator = generator or torch.Generator(device)
        colours, height, width = self.image_shape
        most = self.max_value * 4 ** depth(height, width)
        base = torch.randint(most + 1, (n, colours, 1, 1), generator=generator, device=device)
        growth = []
        for _, sums in unfold(self.network, base, height, width, draw(generator)):
            growth.append(sums)
            if on_step is not None:
                on_step()
        images = growth[-1].to(torch.int32)
        return Samples(images, Scales((SCALE,), [images]), growth)

    def brightness(self, index: int, sums: Tensor) -> Tensor:
        level = len(self.parts) - 1 - index
        return sums.to(torch.get_default_dtype()) / (self.max_value * 4.0**level)


def build_direct(
    config: ModelConfig, seed: int = 0, scales: Sequence[str] | None = None
) -> DirectCascade:
    """A direct cascade with a freshly initialised network.

    Args:
        config: the model; of the networks' settings `channels` (one width) and `blocks` count.
        seed: of the initial weights.
        scales: ("levels",), or none for a cascade without its network.

    Returns:
        The cascade, in training mode.

    Raises:
        ValueError: for settings of diffusion models.
    """
    usual = ModelConfig()
    for key in ("dropout", "base_channels", "base_blocks", "shared_schedule", "learn_endpoints"):
        if getattr(config, key) != getattr(usual, key):
            raise ValueError(f"{key} is a setting of diffusion models: the direct cascade has none")
    if len(config.channels) != 1 or config.levels != 0:
        raise ValueError(
            f"the direct cascade has one width and levels of its own, got channels="
            f"{','.join(map(str, config.channels))} and levels={config.levels}: set channels=64"
        )
    network = None
    if scales is None or SCALE in scales:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = DirectNetwork(
                config.image_shape[0], config.channels[0], config.blocks, config.max_value
            )
    return DirectCascade(network, config.image_shape, config.max_value)
