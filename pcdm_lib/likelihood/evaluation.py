"""Bits per dimension of images under a cascade, with the standard errors that belong to them;
Kraft's sum.

The bound is in nats everywhere else; `bits_per_dim` is where nats become bits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pcdm_lib.diffusion.schedule import stratified_times
from pcdm_lib.models.cascade import EXACT, Cascade, bits_per_dim, evaluation_mode

TERMS = ("prior", "diffusion", "reconstruction")


class ImageScores:
    """Bits per dimension of a set of images, scored several times over, and their errors.

    Attributes:
        parts: (images, repeats, scales, terms) bits per dimension of the whole image.
    """

    parts: np.ndarray

    @property
    def per_image(self) -> np.ndarray:
        """(images,) bits per dimension, averaged over the repeats."""
        return self.parts.sum(axis=(2, 3)).mean(axis=1)

    @property
    def bpd(self) -> float:
        """Bits per dimension, mean over the images."""
        return float(self.per_image.mean())

    @property
    def se_images(self) -> float:
        """Standard error from the choice of images: their spread, less what the noise within each
        image adds to it (known from the repeats, where there is more than one); nan for one
        image."""
        n, repeats = self.parts.shape[:2]
        if n < 2:
            return math.nan
        within = (
            self.parts.sum(axis=(2, 3)).var(axis=1, ddof=1).mean() / repeats if repeats > 1 else 0.0
        )
        return math.sqrt(max(self.per_image.var(ddof=1) - within, 0.0) / n)

    @property
    def se(self) -> float:
        """Standard error of `bpd` from both, as an estimate for the population that the images were
        drawn from."""
        return math.hypot(self.se_images, self.se_noise)

    @property
    def se_noise(self) -> float:
        """Standard error of the mean over these images from the Monte-Carlo noise alone, from
        independent repeats; nan for one. From four repeats it is itself known to about 40 %."""
        means = self.parts.sum(axis=(2, 3)).mean(axis=0)
        return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan


@dataclass(frozen=True)
class Evaluation(ImageScores):
    """The bound on a set of images: what `evaluate` returns. Printed, it is a table.

    Attributes:
        parts: (images, repeats, scales, 3) bits per dimension of the whole image; the terms stand
            in the order of `TERMS`. The repeats are independent of each other.
        scales: their names, coarsest first.
        steps: None for the continuous-time bound, T for the T-step one.
        times: how the times were drawn, "stratified" or "uniform".
        weights: what the caller said of the weights.
        seed: of times and noise.
        times_per_image: network evaluations an image, scale and repeat.
        exact: whether these are -log P itself, without draws: then there is one repeat, and no
            noise.

    Example:
        >>> parts = np.full((2, 4, 1, 3), 0.5)  # two images, four repeats, one scale
        >>> found = pcdm.Evaluation(parts, ("base",), None, "stratified", "EMA", seed=0)
        >>> found.bpd, found.table()["base"]["prior"]
        (1.5, 0.5)
    """

    parts: np.ndarray
    scales: tuple[str, ...]
    steps: int | None
    times: str
    weights: str
    seed: int
    times_per_image: int = 1
    exact: bool = False

    @property
    def se_noise(self) -> float:
        """As for `ImageScores`; 0 where nothing was drawn."""
        return 0.0 if self.exact else super().se_noise

    @property
    def kind(self) -> str:
        """What was computed, in words."""
        if self.exact:
            return EXACT
        return "continuous time" if self.steps is None else f"{self.steps} steps"

    def table(self) -> dict[str, dict[str, float]]:
        """{scale: {term: bpd}}, with the sums under "total"; every figure is a share of the whole
        image's bits per dimension.

        Returns:
            Rows by scale, and "total".
        """
        means = self.parts.mean(axis=(0, 1))
        rows = {s: dict(zip(TERMS, map(float, row))) for s, row in zip(self.scales, means)}
        rows["total"] = dict(zip(TERMS, map(float, means.sum(axis=0))))
        for row in rows.values():
            row["total"] = sum(row[t] for t in TERMS)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The figures for a results file, without the image-by-image array.

        Returns:
            What JSON can hold, but for nan.
        """
        return {
            "bpd": self.bpd,
            "se_images": self.se_images,
            "se_noise": self.se_noise,
            "images": len(self.parts),
            "repeats": self.parts.shape[1],
            "times_per_image": self.times_per_image,
            "bound": self.kind,
            "times": self.times,
            "weights": self.weights,
            "seed": self.seed,
            "table": self.table(),
        }

    def __str__(self) -> str:
        head = f"{'bits per dim':14s}" + "".join(f"{t:>16s}" for t in (*TERMS, "total"))
        rows = [
            f"{name:14s}" + "".join(f"{row[t]:16.4f}" for t in (*TERMS, "total"))
            for name, row in self.table().items()
        ]
        if self.exact:
            foot = (
                f"{self.bpd:.4f} bpd, standard error {self.se_images:.4f} over {len(self.parts)} "
                f"images; the likelihood itself, without draws, {self.weights} weights"
            )
            return "\n".join([head, *rows, foot])
        kind = "continuous time" if self.steps is None else f"T = {self.steps}"
        foot = (
            f"{self.bpd:.4f} bpd, standard error {self.se_images:.4f} over {len(self.parts)} "
            f"images and {self.se_noise:.4f} over the "
            f"noise ({self.parts.shape[1]} repeats of {self.times_per_image} {self.times} times); "
            f"{kind}, {self.weights} weights, seed {self.seed}"
        )
        return "\n".join([head, *rows, foot])


@torch.no_grad()
def evaluate(
    cascade: Cascade,
    images: Tensor,
    *,
    repeats: int = 4,
    times_per_image: int = 4,
    seed: int = 0,
    steps: int | None = None,
    times: str = "stratified",
    weights: str = "given",
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Evaluation:
    """The bound on every image, `repeats` times with independent noise; of a direct cascade the
    likelihood itself, once.

    Source: Eqs. 15-17 of the paper; the T-step bound is Eq. 16 with its T.

    Args:
        cascade: the model; it is in evaluation mode meanwhile.
        images: integers (N, *cascade.image_shape).
        repeats: independent estimates, at least 2 for a standard error of the noise.
        times_per_image: network evaluations an image, scale and repeat.
        seed: of times and noise.
        steps: None for continuous time, T for the T-step model.
        times: "stratified" gives each image one time in each of `times_per_image` strata, and the
            whole set one in each of N * times_per_image; "uniform" draws all of them independently.
        weights: what the caller says of the weights ("EMA", "raw"), for the record.
        batch_size: images at a time.
        device: where the cascade is.
        dtype: of the computation; the networks' weights must have it.
        progress: show a bar.

    Returns:
        Bits per dimension by image, repeat, scale and term.

    Raises:
        ValueError: for no images, another shape, or counts below 1.
        FloatingPointError: where the bound is not finite.

    Example:
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> images = pcdm.load_data("photos").heldout[:2]
        >>> found = pcdm.evaluate(model, images, repeats=2, times_per_image=1)
        >>> found.scales, 0 < found.bpd < 8
        (('base', 'details1'), True)
    """
    if len(images) == 0:
        raise ValueError("no images to evaluate")
    if repeats < 1 or batch_size < 1 or times_per_image < 1:
        raise ValueError(
            f"repeats, times_per_image and batch_size must be at least 1, got {repeats}, "
            f"{times_per_image} and {batch_size}"
        )
    if steps is not None and steps < 1:
        raise ValueError(
            f"a model has at least one step, got steps={steps}; None is continuous time"
        )
    if times not in ("stratified", "uniform"):
        raise ValueError(f"times must be 'stratified' or 'uniform', got {times!r}")
    cascade.check_images(images)
    if cascade.exact:
        repeats = times_per_image = 1
    generator = torch.Generator(device).manual_seed(seed)
    n, count = len(images), len(cascade.parts)
    parts = np.zeros((n, repeats, count, len(TERMS)))
    bar = tqdm(
        total=repeats * times_per_image * n, desc="evaluating", unit="image", disable=not progress
    )
    with evaluation_mode(cascade), bar:
        for repeat in range(repeats):
            t = torch.stack(
                [
                    draw_times(n, times_per_image, times, generator, device, dtype)
                    for _ in range(count)
                ],
                dim=1,
            )
            for k, start in itertools.product(range(times_per_image), range(0, n, batch_size)):
                part = slice(start, start + batch_size)
                bound = cascade.bound(
                    images[part].to(device), generator, steps, times=t[k, :, part], dtype=dtype
                )
                nats = torch.stack([bound.prior, bound.diffusion, bound.reconstruction], dim=-1)
                parts[part, repeat] += (
                    bits_per_dim(nats, cascade.dims).double().cpu().numpy() / times_per_image
                )
                bar.update(len(nats))
    if not np.isfinite(parts).all():
        raise FloatingPointError(
            "the bound is not finite: the weights are broken or training diverged"
        )
    return Evaluation(
        parts, cascade.parts, steps, times, weights, seed, times_per_image, cascade.exact
    )


def draw_times(
    n: int,
    per_image: int,
    kind: str,
    generator: torch.Generator,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """(per_image, n) times for one scale.

    Args:
        n: images.
        per_image: times an image.
        kind: "stratified" or "uniform", see `evaluate`.
        generator: of the times, on `device`.
        device: of the times.
        dtype: of the times.

    Returns:
        (per_image, n) in [0, 1).
    """
    if kind == "uniform":
        return torch.rand(per_image, n, generator=generator, device=device, dtype=dtype)
    strata = torch.arange(per_image, device=device, dtype=dtype)[:, None]
    order = torch.stack(
        [torch.randperm(n, generator=generator, device=device) for _ in range(per_image)]
    )
    within = stratified_times(n, generator, device, dtype)[order]
    return ((strata + within) / per_image).clamp(max=1 - torch.finfo(dtype).eps)


def paired_difference(a: ImageScores, b: ImageScores) -> tuple[float, float]:
    """Mean of a - b over the same images in bits per dimension, and its standard error (noise and
    choice of images together).

    Args:
        a: scores of some images.
        b: scores of the same images, in the same order.

    Returns:
        Mean and standard error.

    Raises:
        ValueError: where the numbers of images differ.

    Example:
        >>> from pcdm_lib.likelihood import paired_difference
        >>> make = lambda bpd: pcdm.Evaluation(bpd, ("base",), None, "stratified", "EMA", 0)
        >>> a, b = np.full((2, 1, 1, 3), 0.75), np.full((2, 1, 1, 3), 0.5)
        >>> paired_difference(make(a), make(b))
        (0.75, 0.0)
    """
    if len(a.parts) != len(b.parts):
        raise ValueError(f"paired means the same images: {len(a.parts)} and {len(b.parts)}")
    d = a.per_image - b.per_image
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def estimator_gain(
    cascade: Cascade,
    images: Tensor,
    *,
    repeats: int = 8,
    group: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """How many times fewer network evaluations stratified times need than uniform ones for the same
    standard error of the noise, one evaluation an image, scale and repeat.

    Args:
        cascade: the model.
        images: integers (N, *cascade.image_shape).
        repeats: independent estimates, at least 2.
        group: images whose mean is compared; N counts in whole groups.
        seed: of times and noise.
        device: where the cascade is.

    Returns:
        The ratio of the two variances of the mean over `group` images, pooled over the groups, and
        the factor by which that ratio may be off (two standard errors of its logarithm, both
        variances taken as chi-square).

    Raises:
        ValueError: for fewer images than a group, or fewer than 2 repeats.
    """
    groups = [images[i : i + group] for i in range(0, len(images) - group + 1, group)]
    if not groups or repeats < 2:
        raise ValueError(
            f"need at least {group} images and 2 repeats, got {len(images)} and {repeats}"
        )
    variance = {"uniform": 0.0, "stratified": 0.0}
    for number, part in enumerate(groups):
        for times in variance:
            result = evaluate(
                cascade,
                part,
                repeats=repeats,
                times_per_image=1,
                seed=seed + number,
                times=times,
                batch_size=group,
                device=device,
            )
            variance[times] += float(result.parts.sum(axis=(2, 3)).mean(axis=0).var(ddof=1))
    freedom = len(groups) * (repeats - 1)
    return variance["uniform"] / variance["stratified"], math.exp(2 * math.sqrt(4 / freedom))
