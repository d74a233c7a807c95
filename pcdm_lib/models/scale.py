"""One scale of a cascade: what it is, its denoiser and its noise schedule, and with them its bound.

    -log P(z_s | z_<s)  <=  prior_s + diffusion_s + reconstruction_s                        (Eq. 16)

The terms stand in diffusion/terms.py; a `Scale` knows what to put into them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pcdm_lib.diffusion.schedule import Schedule, alpha_sigma, stratified_times
from pcdm_lib.diffusion.terms import (
    Denoiser,
    Terms,
    add_noise,
    diffusion_term,
    per_image,
    prior_term,
    reconstruction_term,
    reverse_step,
    step_term,
)
from pcdm_lib.diffusion.weighting import Loss
from pcdm_lib.maps.lattice import scale_draw
from pcdm_lib.maps.scales import ScaleSpec


class Scale(nn.Module):
    """One scale: spec, denoiser, schedule. Called, it gives its training loss.

    Its weights are saved as `network.*` and `schedule.*`.

    Source: Eq. 16 of the paper.

    Args:
        spec: what the scale is.
        denoiser: eps_hat(z_t, gamma, coarse). An nn.Module is registered as `network`; any other
            callable will do for scoring; None for a scale that is trained elsewhere.
        schedule: its noise levels; scales may share one (Theorem 5.1 assumes that).

    Attributes:
        weighting: another training loss than the bound (diffusion/weighting.py), or None.

    Example:
        >>> scale = pcdm.load_pretrained("photos32-wavelet").scales[0]
        >>> scale.name, scale.spec.shape
        ('base', (3, 16, 16))
        >>> z = torch.zeros(2, 3, 16, 16, dtype=torch.int32)
        >>> scale(z, None, torch.Generator().manual_seed(0)).shape  # the training loss
        torch.Size([])
    """

    def __init__(self, spec: ScaleSpec, denoiser: Denoiser | None, schedule: Schedule):
        super().__init__()
        self.spec = spec
        self.network = denoiser if isinstance(denoiser, nn.Module) else None
        self.schedule = schedule
        self.weighting: Loss | None = None
        self._denoiser = None if self.network is denoiser else denoiser

    @property
    def name(self) -> str:
        """Its name within the map, "base" or "details1" and so on."""
        return self.spec.name

    @property
    def known(self) -> bool:
        """Whether there is a denoiser."""
        return self.network is not None or self._denoiser is not None

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser; KeyError naming the scale where there is none."""
        found = self.network if self.network is not None else self._denoiser
        if found is None:
            raise KeyError(f"no denoiser for scale {self.name!r}: it was trained elsewhere")
        return found

    def with_schedule(self, schedule: Schedule) -> Scale:
        """The same scale and denoiser with other noise levels.

        Args:
            schedule: noise levels.

        Returns:
            A new scale that shares the network.
        """
        return Scale(self.spec, self.denoiser if self.known else None, schedule)

    def once(self, z: Tensor, coarse: Tensor | None) -> None:
        """One evaluation of the network, for counting its operations.

        Args:
            z: integers (N, *spec.shape).
            coarse: the integers rebuilt from the coarser scales, None for the base.
        """
        self.denoiser(z.float(), torch.zeros(1), coarse)

    def fit(self, z: Tensor, coarse: Tensor | None) -> None:
        """Set what the network measures on the images before it is trained.

        Args:
            z: integers (N, *spec.shape) of training images.
            coarse: the integers rebuilt from the coarser scales, None for the base.
        """
        cast(Any, self.network).fit(z, coarse)

    def forward(
        self,
        z: Tensor,
        coarse: Tensor | None,
        generator: torch.Generator,
        part: tuple[int, int] = (0, 1),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Training loss: the scale's part of the bound in nats a dimension, mean over the batch.

        Terms that no parameter can change (prior and reconstruction while the endpoints are fixed)
        are left out.

        Args:
            z: integers (N, *spec.shape).
            coarse: the integers rebuilt from the coarser scales, None for the base.
            generator: of times and noise.
            part: (k, n) where z is the k-th of n equal parts of a batch that is trained in n
                processes: times and noise are drawn for the whole batch, so the mean of the n
                losses is the loss of the whole.
            dtype: of the computation.

        Returns:
            A scalar, in nats a dimension of the scale.
        """
        place, parts = part
        rows, count = slice(place * len(z), (place + 1) * len(z)), parts * len(z)
        order = torch.randperm(count, generator=generator, device=z.device)
        t = stratified_times(count, generator, z.device, dtype)[order][rows]
        shape = (count, *z.shape[1:])
        eps = torch.randn(shape, generator=generator, device=z.device, dtype=dtype)[rows]
        if self.weighting is None and self.schedule.learned_endpoints:
            return self.terms(z, coarse, t, eps).total.mean() / self.spec.dims
        loss = diffusion_term if self.weighting is None else self.weighting
        y = self.spec.to_float(z, dtype)
        return loss(self.denoiser, self.schedule, y, coarse, t, eps).mean() / self.spec.dims

    def terms(
        self,
        z: Tensor,
        coarse: Tensor | None,
        t: Tensor,
        eps: Tensor,
        steps: int | None = None,
        eps_0: Tensor | None = None,
        share: Callable[[Tensor], Tensor] = per_image,
    ) -> Terms:
        """The three terms in nats, (N,) each, at given times and noise: no randomness of its own.

        Args:
            z: integers (N, *spec.shape).
            coarse: the integers rebuilt from the coarser scales, None for the base.
            t: times (N,) in [0, 1); with `steps`, the step that holds t is scored, times the number
                of steps.
            eps: noise of the diffusion term, (N, *spec.shape); its type is that of the computation.
            steps: None for continuous time, T for the T-step model.
            eps_0: noise of the reconstruction term; `eps` again where it is None, which keeps every
                term unbiased and makes them share a draw.
            share: `per_image`, or `per_coefficient` for the share of every coordinate, (N,
                *spec.shape).

        Returns:
            Prior, diffusion and reconstruction.

        Raises:
            ValueError: for steps below 1, or integers that belong to no image.
        """
        if steps is not None and steps < 1:
            raise ValueError(
                f"a model has at least one step, got steps={steps}; None is continuous time"
            )
        spec, schedule = self.spec, self.schedule
        y = spec.to_float(z, eps.dtype)
        if steps is None:
            diffusion = diffusion_term(self.denoiser, schedule, y, coarse, t, eps, share)
        else:
            step = (t * steps).long().clamp(max=steps - 1) + 1
            term = step_term(self.denoiser, schedule, y, coarse, (step, steps), eps, share)
            diffusion = steps * term
        noise = eps if eps_0 is None else eps_0
        reconstruction = reconstruction_term(spec, schedule, y, z, coarse, noise, share)
        return Terms(prior_term(y, schedule, share), diffusion, reconstruction)

    @torch.no_grad()
    def noise_profile(
        self,
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

        Args:
            z: integers (N, *spec.shape).
            coarse: the integers rebuilt from the coarser scales, None for the base.
            generator: of noise levels and noise.
            bins: how many intervals.
            dtype: of the computation.

        Returns:
            (bins,), mean over the coordinates; 1 is the error of eps_hat = 0.

        Raises:
            ValueError: for fewer images than intervals.
        """
        if len(z) < bins:
            raise ValueError(f"{bins} intervals need at least as many images, got {len(z)}")
        interval = torch.arange(len(z), device=z.device) % bins
        within = torch.rand(len(z), generator=generator, device=z.device, dtype=dtype)
        gamma = self.schedule.start + self.schedule.span * (interval + within) / bins
        eps = torch.randn(z.shape, generator=generator, device=z.device, dtype=dtype)
        z_t = add_noise(self.spec.to_float(z, dtype), gamma, eps)
        error = (eps - self.denoiser(z_t, gamma, coarse)).square().flatten(1).mean(dim=1)
        total = torch.zeros(bins, device=z.device, dtype=dtype).index_add_(0, interval, error)
        return total / torch.bincount(interval, minlength=bins)

    @torch.no_grad()
    def sample(
        self,
        coarse: Tensor | None,
        n: int,
        steps: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Ancestral sampling with `steps` reverse steps; integers that some image has.

        Args:
            coarse: the integers rebuilt from the coarser scales (n, C, h, w), None for the base.
            n: how many images.
            steps: reverse steps.
            generator: of the noise, on `device`.
            device: where the network is.
            dtype: of the computation.
            on_step: called after every reverse step, for a progress bar.

        Returns:
            Integers (n, *spec.shape), int32.

        Raises:
            ValueError: for steps below 1.
            FloatingPointError: where the network's output is not finite.
        """
        if steps < 1:
            raise ValueError(f"sampling needs at least one step, got {steps}")
        shape = (n, *self.spec.shape)
        z = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        times = torch.linspace(1.0, 0.0, steps + 1, device=device, dtype=dtype)
        for t, s in zip(times[:-1], times[1:]):
            mean, std = reverse_step(self.denoiser, self.schedule, z, coarse, t, s)
            z = mean + std * torch.randn(shape, generator=generator, device=device, dtype=dtype)
            if on_step is not None:
                on_step()
        if not bool(torch.isfinite(z).all()):
            raise FloatingPointError(
                f"sampling of {self.name} gave values that are not finite: the weights or the "
                f"schedule are broken"
            )
        alpha, sigma = alpha_sigma(self.schedule.gamma_min)
        return scale_draw(self.spec, z, alpha, sigma, coarse, generator)
