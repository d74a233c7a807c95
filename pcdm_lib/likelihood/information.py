"""Where the bits of an image are: the bound of the cascade, coefficient by coefficient, and spread
over the pixels that each covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdm_lib.diffusion.terms import per_coefficient
from pcdm_lib.likelihood.evaluation import draw_times
from pcdm_lib.maps.scales import ScaleSpec
from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.models.cascade import Cascade, evaluation_mode
from pcdm_lib.models.direct import depth, pyramid
from pcdm_lib.models.direct_cascade import DirectCascade


@dataclass(frozen=True)
class InformationMap:
    """The bound on N images, split up.

    Attributes:
        specs: the scales, coarsest first.
        nats: for each the share of every coordinate, (N, *spec.shape) float64: an unbiased draw, so
            single ones scatter and may be off where the mean over `times` draws has not settled.
        image_shape: (C, H, W).

    A coefficient's share is what it adds to the code length given the coarser scales: its part of
    the denoiser's error over all noise levels, plus what the decoder has left to say. What a
    coefficient costs depends on its neighbours, which the network sees too.
    """

    specs: tuple[ScaleSpec, ...]
    nats: tuple[Tensor, ...]
    image_shape: tuple[int, int, int]

    def bits(self) -> Tensor:
        """(N, S) bits of every image and scale; their sum over S is its code length.

        Returns:
            (N, S).
        """
        return torch.stack([v.flatten(1).sum(dim=1) for v in self.nats], dim=1) / math.log(2)

    def band_bits(self) -> dict[str, Tensor]:
        """(N,) bits of every band of every scale, under "scale" where it has one band and "scale p"
        where it has several.

        Returns:
            One array (N,) a band, by name.
        """
        found = {}
        for spec, nats in zip(self.specs, self.nats):
            for band, share in spec.split(nats).items():
                name = spec.name if len(spec.bands) == 1 else f"{spec.name} {band}"
                found[name] = share.flatten(1).sum(dim=1) / math.log(2)
        return found

    def pixel_bits(self) -> Tensor:
        """(N, S, H, W) bits a pixel: every coefficient's bits, bands and colours together, spread
        evenly over the square of pixels that it covers. Summed over pixels they are `bits`.

        Returns:
            (N, S, H, W).
        """
        height, width = self.image_shape[1:]
        maps = []
        for nats in self.nats:
            place = nats.sum(dim=1)
            rows, columns = height // place.shape[1], width // place.shape[2]
            maps.append(
                place.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
                / (rows * columns * math.log(2))
            )
        return torch.stack(maps, dim=1)


@torch.no_grad()
def information_map(
    cascade: Cascade,
    images: Tensor,
    *,
    times: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> InformationMap:
    """The bound on integer images (N, *cascade.image_shape) by coefficient, averaged over `times`
    stratified noise levels an image and scale; of a direct cascade the likelihood itself, for
    square images whose side is a power of two.

    The draws are those of `evaluate(cascade, images, repeats=1, times_per_image=times, seed=seed)`
    in one batch, so `bits` sums to its figures exactly, up to float rounding.

    Args:
        cascade: the model; it is in evaluation mode meanwhile.
        images: integers (N, *cascade.image_shape).
        times: noise levels an image and scale.
        seed: of times and noise.
        device: where the cascade is.
        dtype: of the computation.

    Returns:
        Nats of every coordinate, scale by scale.

    Raises:
        ValueError: for no images, another shape, or no times.
        FloatingPointError: where the bound is not finite.

    Example:
        >>> from pcdm_lib.likelihood import information_map
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> found = information_map(model, pcdm.load_data("photos").heldout[:1], times=1)
        >>> found.bits().shape, found.pixel_bits().shape
        (torch.Size([1, 2]), torch.Size([1, 2, 32, 32]))
    """
    if len(images) == 0 or times < 1:
        raise ValueError(f"need at least one image and one time, got {len(images)} and {times}")
    if isinstance(cascade, DirectCascade):
        return _exact(cascade, images.to(device))
    pairs = cascade.decompose(images.to(device))
    generator = torch.Generator(device).manual_seed(seed)
    nats = [torch.zeros(len(images), *spec.shape, dtype=torch.float64) for spec in cascade.specs]
    with evaluation_mode(cascade):
        t = torch.stack(
            [
                draw_times(len(images), times, "stratified", generator, device, dtype)
                for _ in cascade.specs
            ],
            dim=1,
        )
        for k in range(times):
            for index, (z, coarse) in enumerate(pairs):
                eps = torch.randn(z.shape, generator=generator, device=device, dtype=dtype)
                terms = cascade.scales[index].terms(
                    z, coarse, t[k, index], eps, share=per_coefficient
                )
                nats[index] += terms.total.double().cpu() / times
    if not all(bool(torch.isfinite(v).all()) for v in nats):
        raise FloatingPointError(
            "the bound is not finite: the weights are broken or training diverged"
        )
    return InformationMap(cascade.specs, tuple(nats), cascade.image_shape)


@dataclass(frozen=True)
class PaidTwice:
    """What the standard cascade pays for pixels that it has paid for already (paper, Appendix C),
    in bits per dimension of the image.

    Attributes:
        first: (N,) what the coarser scales spent on the pixels that they hold.
        again: (N,) what finer scales spent on those pixels, which the receiver knows exactly by
            then: bits that a map without redundancy does not pay.
        new: (N,) what finer scales spent on the rest.
    """

    first: Tensor
    again: Tensor
    new: Tensor

    def to_dict(self) -> dict[str, float]:
        """Means over the images with their standard errors (choice of images and noise of the draws
        together).

        Returns:
            Means in bits per dimension, "se" of the part paid again, and the number of images.
        """
        n = len(self.again)
        parts = {"first": self.first, "bpd": self.again, "new": self.new}
        return {k: float(v.mean()) for k, v in parts.items()} | {
            "se": float(self.again.std() / math.sqrt(n)) if n > 1 else math.nan,
            "images": n,
        }


def paid_twice(
    cascade: Cascade,
    images: Tensor,
    *,
    times: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PaidTwice:
    """Split the bound of a standard cascade by whether the receiver knew a pixel already; see
    `information_map` for the draws.

    Source: Appendix C of the paper.

    Args:
        cascade: a model of the standard cascade.
        images: integers (N, *cascade.image_shape).
        times: noise levels an image and scale.
        seed: of times and noise.
        device: where the cascade is.

    Returns:
        Bits per dimension of every image, in three parts.

    Raises:
        ValueError: for a cascade of another map, which pays nothing twice.
    """
    if cascade.map.volume_preserving:
        raise ValueError(
            f"{cascade.map!r} holds every number once: only the standard cascade pays twice"
        )
    found = information_map(cascade, images, times=times, seed=seed, device=device)
    unit = math.log(2) * cascade.dims
    again, new = (
        torch.zeros(len(images), dtype=torch.float64),
        torch.zeros(len(images), dtype=torch.float64),
    )
    for nats in found.nats[1:]:
        # Eq. 10: the coarser scale is every second pixel
        known = nats[..., ::2, ::2].flatten(1).sum(dim=1)
        again += known / unit
        new += (nats.flatten(1).sum(dim=1) - known) / unit
    return PaidTwice(found.nats[0].flatten(1).sum(dim=1) / unit, again, new)


def _exact(cascade: DirectCascade, images: Tensor) -> InformationMap:
    """-log P by integer: nothing is drawn."""
    cascade.check_images(images)
    levels, (height, width) = depth(*cascade.image_shape[1:]), cascade.image_shape[1:]
    if height != width or height != 1 << levels:
        raise ValueError(
            f"an information map of a direct cascade takes square images whose side is a power of "
            f"two, got {width}x{height}"
        )
    specs = HaarWavelet(levels).specs(cascade.image_shape, cascade.max_value)
    base, found = pyramid(images.to(torch.int32))
    even = math.log(cascade.max_value * 4.0**levels + 1)
    nats = [torch.full(base.shape, even, dtype=torch.float64)]
    for level in found:
        nats.append(cascade.network.level_nats(level).cpu())
    return InformationMap(specs, tuple(nats), cascade.image_shape)
