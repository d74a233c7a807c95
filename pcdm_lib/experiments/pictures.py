"""Samples of a cascade as PNG files, scale by scale."""

from __future__ import annotations

from pathlib import Path

import torch

from pcdm_lib.data.files import write_png
from pcdm_lib.models.cascade import Cascade, Samples


def write_samples(cascade: Cascade, samples: Samples, folder: Path, description: str) -> list[Path]:
    """Write `sample-000-base.png` and so on: every image at every scale, coarsest first.

    Args:
        samples: what `cascade.sample` returned.
        folder: made where it does not exist.
        description: goes into each file as its text "Description".
    Returns:
        The files, scale by scale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, coarse in enumerate(samples.growth):
        brightness = cascade.brightness(index, coarse).cpu()
        pixels = (brightness * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, image in enumerate(pixels):
            path = folder / f"sample-{number:03d}-{cascade.parts[index]}.png"
            write_png(path, image, description)
            written.append(path)
    return written
