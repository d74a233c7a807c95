"""What a model's files come to, measured: bytes on disk beside the T-step bound of the same images,
and from how many images on the rest is small."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.coding import archive, chunks
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate
from pcdm_lib.models.cascade import Cascade


@dataclass(frozen=True)
class Measured:
    """One model's file of some images.

    Attributes:
        statistics: where its bits went.
        bytes: its size on disk.
        bound: the T-step bound of the images that the model coded whole, or None where there are
            none.
        peak_megabytes: the most memory that the process has had by then.
    """

    model: str
    settings: chunks.Settings
    statistics: chunks.Statistics
    bytes: int
    bound: Evaluation | None
    peak_megabytes: float

    @property
    def file_bpd(self) -> float:
        """Bits per dimension of the file, everything counted."""
        return 8 * self.bytes / self.statistics.dims

    @property
    def dims(self) -> float:
        """Samples of an image."""
        return self.statistics.dims / self.statistics.images

    @property
    def law(self) -> float:
        """Net bits over the T-step bound on the very latents of the file, less 1: what the entropy
        coder adds, its floor and its escapes included. NaN where the model coded nothing."""
        return (
            self.statistics.model_bits / self.statistics.ideal_bits - 1
            if self.statistics.model_dims
            else math.nan
        )

    @property
    def excess(self) -> tuple[float, float]:
        """Net bits per dimension less the bound, image by image, and the standard error of the
        mean; NaN where nothing can be said."""
        if self.bound is None:
            return math.nan, math.nan
        # estimates, which the stack itself puts right
        net = np.array([*self.statistics.image_bits.values()])
        net *= (
            self.statistics.model_bits
            / net.sum()
            * (len(net) * self.dims / self.statistics.model_dims)
            / self.dims
        )
        difference = net - self.bound.per_image
        return float(difference.mean()), float(
            difference.std(ddof=1) / math.sqrt(len(difference))
        ) if len(difference) > 1 else math.nan

    def images_within(self, share: float) -> int | None:
        """From how many such images on a file of one chunk takes at most that share more than its
        net bits, by what this file spent beside them; None where no number does, where the model
        coded nothing, or where images were stored whole by a plain codec."""
        if not self.statistics.model_images or self.statistics.plain_images:
            return None
        dims = self.dims
        each = 8 * (4 + 1)  # a checksum, and the little that a name and a place take
        once = (
            self.statistics.total_bits
            - self.statistics.net_bpd * self.statistics.dims
            - each * self.statistics.images
        )
        saved = share * self.statistics.net_bpd * dims - each
        return max(1, math.ceil(once / saved)) if saved > 0 else None

    def row(self) -> dict[str, Any]:
        """The figures for a table: bits per dimension, shares and images a second."""
        mean, error = self.excess
        within = self.images_within(0.02)
        outside = 1 - self.statistics.network_seconds / self.statistics.seconds
        return {
            "model": self.model,
            "T": self.settings.steps,
            "images": self.statistics.images,
            "T-step bound": math.nan if self.bound is None else self.bound.bpd,
            "net": self.statistics.net_bpd,
            "net minus bound": f"{mean:+.4f} ± {error:.4f}",
            "on the same latents": f"{self.law:+.2%}",
            "file": self.file_bpd,
            "within 2 % from": "never" if within is None else within,
            "plain": self.statistics.plain_images,
            "images/s": f"{self.statistics.images / self.statistics.seconds:.3f}",
            "outside the network": f"{outside:.1%}",
            "peak MB": f"{self.peak_megabytes:.0f}",
        }

    def to_dict(self) -> dict[str, Any]:
        """For a results file; bits, bytes and seconds."""
        mean, error = self.excess
        statistics = {
            key: value
            for key, value in vars(self.statistics).items()
            if key not in ("steps", "image_bits")
        }
        return {
            "model": self.model,
            "steps": self.settings.steps,
            "fineness": self.settings.fineness,
            "precision": self.settings.precision,
            "bytes": self.bytes,
            "file_bpd": self.file_bpd,
            "net_bpd": self.statistics.net_bpd,
            "bound": None if self.bound is None else self.bound.to_dict(),
            "excess": {"bpd": mean, "se": error},
            "law": self.law,
            "statistics": statistics,
            "peak_megabytes": self.peak_megabytes,
        }


def measure(
    cascade: Cascade,
    images: Tensor,
    model: str,
    settings: chunks.Settings,
    *,
    repeats: int = 2,
    seed: int = 0,
    verify: bool = True,
    device: torch.device | str = "cpu",
    on_evaluation: Callable[[int], None] | None = None,
) -> Measured:
    """Write images (N, C, H, W), uint8 and of the model's own size, to a temporary file, and score
    those that the model coded.

    Args:
        repeats: of the bound: independent estimates, each of all steps of every image and scale, or
            of 50 where there are more.
        verify: decode and compare too.
    """
    named = (
        (
            f"image-{i:05d}.png",
            image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy(),
        )
        for i, image in enumerate(images)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.pcdm"
        statistics = archive.compress(
            named,
            path,
            cascade,
            model,
            settings,
            verify=verify,
            device=device,
            on_evaluation=on_evaluation,
        )
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    coded = [*statistics.image_bits]
    bound = None
    if coded:
        bound = evaluate(
            cascade,
            images[coded],
            repeats=repeats,
            times_per_image=min(settings.steps, 50),
            seed=seed,
            steps=settings.steps,
            device=device,
        )
    return Measured(model, settings, statistics, size, bound, peak)
