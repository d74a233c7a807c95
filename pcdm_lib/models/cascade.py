"""The cascade: a map and one diffusion a scale, and with them the bound of Eq. 15 on -log P(x), and
samples.

    -log P(x) = sum_s -log P(z_s | z_<s)  <=  sum_s ( prior_s + diffusion_s + reconstruction_s )

Scales are conditioned on the exact integers of the coarser ones, which a decoder has already. A
denoiser may be any callable (diffusion/terms.py); a scale whose denoiser is None can be scored and
trained elsewhere, and the others do not need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcdm_lib.diffusion.schedule import Schedule, stratified_times
from pcdm_lib.diffusion.terms import (
    Denoiser,
    Terms,
    add_noise,
    diffusion_term,
    prior_term,
    reconstruction_term,
    sample_scale,
    step_term,
)
from pcdm_lib.diffusion.weighting import Loss
from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.scales import Scales


class Bound(NamedTuple):
    """The terms of the bound in nats, each (N, S): image by image, scale by scale in the order of
    `names`."""

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
    """`images` (N, C, H, W) int32; `scales` their integer coordinates; `growth[i]` the integers
    rebuilt from scales 0..i."""

    images: Tensor
    scales: Scales
    growth: list[Tensor]

    def first(self, n: int) -> Samples:
        """The first n of them."""
        return Samples(
            self.images[:n], self.scales.apply(lambda v: v[:n]), [v[:n] for v in self.growth]
        )


class Cascade(nn.Module):
    """A map, and for each scale a denoiser and a schedule.

    Args:
        hierarchy: the map. image_shape: (C, H, W). max_value: largest grey level.
        denoisers: one a scale, coarsest first; nn.Modules are registered and so trained and saved;
            None for a scale that is not at hand.
        schedules: one for all scales (Theorem 5.1 assumes that) or one a scale.
    """

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
        self.image_shape = tuple(image_shape)
        self.max_value = max_value
        self.specs = hierarchy.specs(self.image_shape, max_value)
        count = len(self.specs)
        if isinstance(schedules, Schedule):
            schedules = [schedules] * count
        if len(denoisers) != count or len(schedules) != count:
            raise ValueError(
                f"{hierarchy!r} has {count} scales, got {len(denoisers)} denoisers and "
                f"{len(schedules)} schedules"
            )
        self.networks = nn.ModuleDict(
            {s.name: d for s, d in zip(self.specs, denoisers) if isinstance(d, nn.Module)}
        )
        self.schedules = nn.ModuleList(schedules)
        self._callables = {
            s.name: d
            for s, d in zip(self.specs, denoisers)
            if d is not None and not isinstance(d, nn.Module)
        }

    @property
    def dims(self) -> int:
        """Pixels times channels: the D of bits per dimension."""
        return self.image_shape[0] * self.image_shape[1] * self.image_shape[2]

    def denoiser(self, index: int) -> Denoiser:
        """The denoiser of a scale; KeyError naming the scale where there is none."""
        name = self.specs[index].name
        if name in self.networks:
            return self.networks[name]
        if name in self._callables:
            return self._callables[name]
        raise KeyError(
            f"no denoiser for scale {name!r}: this cascade holds "
            f"{[*self.networks, *self._callables]}"
        )

    def check_images(self, x: Tensor) -> None:
        """Raises unless x is an integer batch (N, *image_shape) in range (the range is the map's
        check)."""
        if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"this cascade takes integer images (N, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(getattr(x, 'shape', ()))}: crop, pad or use another preset"
            )

    def decompose(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(integer coordinates, coarser integers) of every scale of x, after the checks."""
        self.check_images(x)
        return self.map.decompose(x, self.max_value)

    def scale_terms(
        self,
        index: int,
        z: Tensor,
        coarse: Tensor | None,
        t: Tensor,
        eps: Tensor,
        steps: int | None = None,
        eps_0: Tensor | None = None,
        per_coefficient: bool = False,
    ) -> Terms:
        """The three terms of one scale in nats, (N,) each, at given times and noise: no randomness
        of its own.

        Args:
            z, coarse: what `decompose` gives for the scale.
            t: times (N,) in [0, 1); with `steps`, the step that holds t is scored, times the number
                of steps.
            eps: noise of the diffusion term. eps_0: noise of the reconstruction term; `eps` again
                where it is None, which keeps every term unbiased and makes them share a draw.
            per_coefficient: give the share of every coordinate, (N, *spec.shape), instead of their
                sum over the image.
        """
        if steps is not None and steps < 1:
            raise ValueError(
                f"a model has at least one step, got steps={steps}; None is continuous time"
            )
        spec, schedule, denoiser = self.specs[index], self.schedules[index], self.denoiser(index)
        y = spec.to_float(z, eps.dtype)
        if steps is None:
            diffusion = diffusion_term(denoiser, schedule, y, coarse, t, eps, per_coefficient)
        else:
            step = (t * steps).long().clamp(max=steps - 1) + 1
            diffusion = steps * step_term(
                denoiser, schedule, y, coarse, step, steps, eps, per_coefficient
            )
        reconstruction = reconstruction_term(
            spec, schedule, y, z, coarse, eps if eps_0 is None else eps_0, per_coefficient
        )
        return Terms(prior_term(y, schedule, per_coefficient), diffusion, reconstruction)

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

        Args:
            x: integer images (N, *image_shape). steps: None for continuous time, T for the T-step
                model.
            scales: indices of the scales to score, all by default.
            times: (S, N) in [0, 1); stratified over the batch, a fresh order for every scale, where
                it is None.
        """
        pairs = self.decompose(x)
        chosen = range(len(self.specs)) if scales is None else scales
        rows = []
        for index in chosen:
            z, coarse = pairs[index]
            if times is None:
                order = torch.randperm(len(x), generator=generator, device=x.device)
                t = stratified_times(len(x), generator, x.device, dtype)[order]
            else:
                t = times[index]
            eps = torch.randn(z.shape, generator=generator, device=x.device, dtype=dtype)
            rows.append(self.scale_terms(index, z, coarse, t, eps, steps))
        columns = (torch.stack(column, dim=1) for column in zip(*rows))
        return Bound(tuple(self.specs[i].name for i in chosen), *columns)

    def loss(
        self,
        index: int,
        z: Tensor,
        coarse: Tensor | None,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        part: tuple[int, int] = (0, 1),
        weighted: Loss | None = None,
    ) -> Tensor:
        """Training loss of one scale: its part of the bound in nats a dimension of the scale,
        averaged over the batch.

        Terms that no parameter of this scale can change (prior and reconstruction while the
        endpoints are fixed) are left out.

        Args:
            part: (k, n) where z is the k-th of n equal parts of a batch that is trained in n
                processes: times and noise are drawn for the whole batch, so the mean of the n
                    losses is the loss of the whole.
            weighted: another loss than the bound (weighting.py), at the same times taken as
                quantiles.
        """
        spec, schedule = self.specs[index], self.schedules[index]
        place, parts = part
        rows, count = slice(place * len(z), (place + 1) * len(z)), parts * len(z)
        order = torch.randperm(count, generator=generator, device=z.device)
        t = stratified_times(count, generator, z.device, dtype)[order][rows]
        eps = torch.randn((count, *z.shape[1:]), generator=generator, device=z.device, dtype=dtype)[
            rows
        ]
        if weighted is not None:
            return (
                weighted(
                    self.denoiser(index), schedule, spec.to_float(z, dtype), coarse, t, eps
                ).mean()
                / spec.dims
            )
        if schedule.learned_endpoints:
            return self.scale_terms(index, z, coarse, t, eps).total.mean() / spec.dims
        return (
            diffusion_term(
                self.denoiser(index), schedule, spec.to_float(z, dtype), coarse, t, eps
            ).mean()
            / spec.dims
        )

    @torch.no_grad()
    def noise_profile(
        self,
        index: int,
        z: Tensor,
        coarse: Tensor | None,
        generator: torch.Generator,
        bins: int,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Mean squared error of eps_hat in each of `bins` equal intervals of gamma, (bins,): what
        `FittedSchedule.fit` takes.

        One forward pass: the images (N, ...) are dealt over the intervals in turn, so N must be at
            least `bins`.
        """
        if len(z) < bins:
            raise ValueError(f"{bins} intervals need at least as many images, got {len(z)}")
        spec, schedule = self.specs[index], self.schedules[index]
        interval = torch.arange(len(z), device=z.device) % bins
        within = torch.rand(len(z), generator=generator, device=z.device, dtype=dtype)
        gamma = schedule.start + schedule.span * (interval + within) / bins
        eps = torch.randn(z.shape, generator=generator, device=z.device, dtype=dtype)
        error = (
            (
                eps
                - self.denoiser(index)(
                    add_noise(spec.to_float(z, dtype), gamma, eps), gamma, coarse
                )
            )
            .square()
            .flatten(1)
            .mean(dim=1)
        )
        return torch.zeros(bins, device=z.device, dtype=dtype).index_add_(
            0, interval, error
        ) / torch.bincount(interval, minlength=bins)

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

        `on_step` is called after every reverse step (steps * scales in all), for a progress bar.
        """
        if n < 1:
            raise ValueError(f"sample needs n >= 1, got {n}")
        coarse, values, growth = None, [], []
        for index, spec in enumerate(self.specs):
            z = sample_scale(
                spec,
                self.denoiser(index),
                self.schedules[index],
                coarse,
                n,
                steps,
                generator,
                device,
                dtype,
                on_step,
            )
            coarse = self.map.refine(index, coarse, z)
            values.append(z)
            growth.append(coarse)
        return Samples(coarse, Scales(tuple(s.name for s in self.specs), values), growth)


def bits_per_dim(nats: Tensor | float, dims: int) -> Any:
    """Nats of a whole image -> bits per dimension."""
    return nats / (dims * math.log(2))
