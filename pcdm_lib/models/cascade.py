"""The cascade: a map and one diffusion a scale, and with them the bound of Eq. 15 on -log P(x), and
samples.

    -log P(x) = sum_s -log P(z_s | z_<s)  <=  sum_s ( prior_s + diffusion_s + reconstruction_s )

Scales are conditioned on the exact integers of the coarser ones, which a decoder has already. A
denoiser may be any callable (diffusion/terms.py); a scale whose denoiser is None can be scored and
trained elsewhere, and the others do not need it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcdm_lib.diffusion.schedule import Schedule, stratified_times
from pcdm_lib.diffusion.terms import Denoiser
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.scales import Scales
from pcdm_lib.models.config import TrainingConfig
from pcdm_lib.models.scale import Scale

EXACT = "exact likelihood"  # what is said of a figure that is no bound


class Bound(NamedTuple):
    """The terms of the bound in nats, each (N, S): image by image, scale by scale in the order of
    `names`.

    Source: Eqs. 15-17 of the paper.

    Attributes:
        names: of the scales, coarsest first.
        prior: nats, (N, S).
        diffusion: nats, (N, S).
        reconstruction: nats, (N, S).

    Example:
        >>> model = pcdm.build(pcdm.preset("tiny", image_shape=(3, 8, 8)).model)
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> bound = model.bound(images, torch.Generator().manual_seed(0))
        >>> bound.names, bound.diffusion.shape, bound.total.shape
        (('base', 'details1'), torch.Size([2, 2]), torch.Size([2]))
    """

    names: tuple[str, ...]
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def per_scale(self) -> Tensor:
        """(N, S) nats."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def total(self) -> Tensor:
        """(N,) nats: an upper bound on -log P(x) when all scales are there."""
        return self.per_scale.sum(dim=1)


class Samples(NamedTuple):
    """Images drawn from a cascade, and how they grew.

    Attributes:
        images: (N, C, H, W) int32.
        scales: integer coordinates of each scale.
        growth: integers rebuilt from scales 0..i, for each i.
    """

    images: Tensor
    scales: Scales
    growth: list[Tensor]

    def first(self, n: int) -> Samples:
        """The first n of them.

        Args:
            n: how many.

        Returns:
            The same record with n images.
        """
        return Samples(
            self.images[:n], self.scales.apply(lambda v: v[:n]), [v[:n] for v in self.growth]
        )


class Cascade(nn.Module):
    """A map, and for each scale a denoiser and a schedule.

    Source: Sect. 5.1 of the paper, Eqs. 15-17.

    Args:
        hierarchy: the map.
        image_shape: (C, H, W).
        denoisers: one a scale: a network, any callable eps_hat(z_t, gamma, coarse), or None.
        schedules: one a scale, or one Schedule that all scales share (Theorem 5.1 assumes that).
        max_value: the largest value of a pixel, 255 for 8 bits.

    Raises:
        ValueError: where their numbers differ from that of the scales.

    Example:
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> model.names, model.dims
        (('base', 'details1'), 3072)
        >>> wavelet = pcdm.HaarWavelet(levels=1)
        >>> nothing = lambda z_t, gamma, coarse: torch.zeros_like(z_t)
        >>> schedule = pcdm.LinearSchedule(-13.0, 5.0)
        >>> pcdm.Cascade(wavelet, (3, 8, 8), [nothing, nothing], schedule).dims
        192
    """

    exact = False  # whether `bound` gives -log P itself, without draws
    scale_type: type[Scale] = Scale

    def __init__(
        self,
        hierarchy: HierarchicalMap,
        image_shape: tuple[int, int, int],
        denoisers: Sequence[Denoiser | None],
        schedules: Schedule | Sequence[Schedule],
        max_value: int = 255,
    ):
        super().__init__()
        self.map = hierarchy
        self.specs = hierarchy.specs(image_shape, max_value)
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.max_value = max_value
        count = len(self.specs)
        if isinstance(schedules, Schedule):
            schedules = [schedules] * count
        if len(denoisers) != count or len(schedules) != count:
            raise ValueError(
                f"{hierarchy!r} has {count} scales, got {len(denoisers)} denoisers and "
                f"{len(schedules)} schedules"
            )
        self.scales = tuple(map(self.scale_type, self.specs, denoisers, schedules))
        self.networks = nn.ModuleDict(
            {s.name: s.network for s in self.scales if s.network is not None}
        )
        self.schedules = nn.ModuleList(s.schedule for s in self.scales)

    def with_schedules(self, schedules: Sequence[Schedule]) -> Cascade:
        """The same map and denoisers with other noise levels.

        Args:
            schedules: one a scale.

        Returns:
            A new cascade that shares the networks.
        """
        denoisers = [s.denoiser if s.known else None for s in self.scales]
        return Cascade(self.map, self.image_shape, denoisers, schedules, self.max_value)

    def forget(self, name: str) -> None:
        """Drop the network of a scale, which another process trains.

        Args:
            name: of the scale.
        """
        self.scales[self.names.index(name)].network = None
        del self.networks[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The scales' names, coarsest first."""
        return tuple(spec.name for spec in self.specs)

    @property
    def parts(self) -> tuple[str, ...]:
        """What `bound` tells apart, coarsest first: the scales."""
        return self.names

    def brightness(self, index: int, sums: Tensor) -> Tensor:
        """The image that one of the parts of `Samples.growth` shows.

        Args:
            index: of the part.
            sums: integers (N, C, h, w).

        Returns:
            Values from 0 to 1, of the shape of `sums`.
        """
        return self.map.brightness(index, sums, self.max_value)

    def check_diffusion(self, what: str) -> None:
        """Raise an error where this is no diffusion model.

        Args:
            what: needs one, for the message.

        Raises:
            ValueError: for a direct cascade.
        """

    def check_training(self, training: TrainingConfig, shard: bool) -> None:
        """Raise an error for settings of training that this kind of model cannot take.

        Args:
            training: the settings.
            shard: whether weights are divided among processes.

        Raises:
            ValueError: naming the setting.
        """

    @property
    def dims(self) -> int:
        """Pixels times channels: the D of bits per dimension."""
        return self.image_shape[0] * self.image_shape[1] * self.image_shape[2]

    def check_images(self, x: Tensor) -> None:
        """Raise an error unless x is a batch of this cascade's images; the map checks their type
        and range.

        Args:
            x: integers (N, *image_shape).

        Raises:
            ValueError: for another shape.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"this cascade takes integer images (N, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(getattr(x, 'shape', ()))}: crop, pad or use another preset"
            )

    def check_known(self, indices: Iterable[int]) -> None:
        """Raise an error where one of these scales has no denoiser.

        Args:
            indices: of the scales.

        Raises:
            KeyError: naming the first of them.
        """
        for scale in (self.scales[i] for i in indices):
            if not scale.known:
                held = [s.name for s in self.scales if s.known]
                raise KeyError(f"no denoiser for scale {scale.name!r}: this cascade holds {held}")

    def decompose(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(integer coordinates, coarser integers) of every scale of x, after the checks.

        Args:
            x: integers (N, *image_shape) in 0..max_value.

        Returns:
            A pair a scale, coarsest first; coarse is None for the base.

        Raises:
            TypeError: for floats.
            ValueError: for another shape, or values out of range.
        """
        self.check_images(x)
        return self.map.decompose(x, self.max_value)

    def bound(
        self,
        x: Tensor,
        generator: torch.Generator,
        steps: int | None = None,
        scales: Sequence[int] | None = None,
        times: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Bound:
        """One unbiased draw of the bound for every image: one network evaluation an image and
        scale.

        Source: Eqs. 15-17 of the paper.

        Args:
            x: integer images (N, *image_shape).
            generator: of times and noise, on the device of x.
            steps: None for continuous time, T for the T-step model.
            scales: indices of the scales to score, all by default.
            times: (S, N) in [0, 1); stratified over the batch, a fresh order for every scale, where
                it is None.
            dtype: of the computation; the networks' weights must have it.

        Returns:
            The terms in nats, each (N, S).

        Raises:
            KeyError: for a scale without a denoiser.
            ValueError: for images of another shape, or steps below 1.

        Example:
            >>> from pcdm_lib.models import bits_per_dim
            >>> model = pcdm.load_pretrained("photos32-wavelet")
            >>> images = pcdm.load_data("photos").heldout[:2]
            >>> bound = model.bound(images, torch.Generator().manual_seed(0))
            >>> bits = bits_per_dim(bound.total, model.dims)
            >>> bits.shape, bool((bits < 8).all())
            (torch.Size([2]), True)
        """
        pairs = self.decompose(x)
        chosen = range(len(self.specs)) if scales is None else scales
        self.check_known(chosen)
        rows = []
        for index in chosen:
            z, coarse = pairs[index]
            if times is None:
                order = torch.randperm(len(x), generator=generator, device=x.device)
                t = stratified_times(len(x), generator, x.device, dtype)[order]
            else:
                t = times[index]
            eps = torch.randn(z.shape, generator=generator, device=x.device, dtype=dtype)
            rows.append(self.scales[index].terms(z, coarse, t, eps, steps))
        columns = (torch.stack(column, dim=1) for column in zip(*rows))
        return Bound(tuple(self.specs[i].name for i in chosen), *columns)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[], None] | None = None,
    ) -> Samples:
        """n integer images by ancestral sampling, coarsest scale first; deterministic given the
        generator's state.

        Args:
            n: how many images.
            steps: reverse steps a scale.
            generator: of the noise, on `device`.
            device: where the networks are.
            dtype: of the computation.
            on_step: called after every reverse step (steps * scales in all), for a progress bar.

        Returns:
            The images with their scales.

        Raises:
            KeyError: for a scale without a denoiser.
            ValueError: for n or steps below 1.
            FloatingPointError: where a network's output is not finite.

        Example:
            >>> model = pcdm.load_pretrained("photos32-wavelet")
            >>> model.sample(1, steps=2, generator=torch.Generator().manual_seed(0)).images.shape
            torch.Size([1, 3, 32, 32])
        """
        if n < 1:
            raise ValueError(f"sample needs n >= 1, got {n}")
        self.check_known(range(len(self.scales)))
        coarse: Tensor | None = None
        values, growth = [], []
        for index, scale in enumerate(self.scales):
            z = scale.sample(coarse, n, steps, generator, device, dtype, on_step)
            coarse = self.map.refine(index, coarse, z)
            values.append(z)
            growth.append(coarse)
        return Samples(growth[-1], Scales(self.names, values), growth)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside the block; at its end, also by an error, the mode that
    the module had before.

    Args:
        module: a cascade, a scale or a network.

    Yields:
        Nothing.

    Example:
        >>> from pcdm_lib.models import evaluation_mode
        >>> cascade = pcdm.build(pcdm.preset("tiny").model)
        >>> with evaluation_mode(cascade): print(cascade.training)
        False
        >>> cascade.training
        True
    """
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def bits_per_dim(nats: Tensor | float, dims: int) -> Any:
    """Nats of a whole image -> bits per dimension.

    Args:
        nats: of any shape.
        dims: pixels times channels, `Cascade.dims`.

    Returns:
        Bits a dimension, of the shape of `nats`.

    Example:
        >>> from pcdm_lib.models import bits_per_dim
        >>> round(bits_per_dim(2129.0, 3 * 32 * 32), 4)
        0.9998
    """
    return nats / (dims * math.log(2))
