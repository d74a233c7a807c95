"""`pcdm sample`: images from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcdm_lib.commands.options import (
    MODEL,
    OUTPUT,
    Device,
    Force,
    Quiet,
    Runs,
    Seed,
    Weights,
    examples,
    say_unused,
    sources,
    whole,
)


@examples(
    "pcdm sample photos32-wavelet --out samples/ --count 4 --steps 50",
    "pcdm sample runs/base runs/details -o samples/ --seed 1",
)
def sample(
    runs: Runs,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the PNG files, made if need be.", rich_help_panel=OUTPUT
        ),
    ],
    count: Annotated[
        int,
        typer.Option(help="Number of images.", rich_help_panel=OUTPUT, **whole(1, 1_000_000)),
    ] = 16,
    steps: Annotated[
        int,
        typer.Option(
            help="Reverse steps of each scale of a diffusion model.",
            rich_help_panel=MODEL,
            **whole(1, 1_000_000),
        ),
    ] = 100,
    weights: Weights = "ema",
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Draw images from a trained model, and write each at every scale."""
    import torch
    from tqdm.auto import tqdm

    from pcdm_lib import outputs, records
    from pcdm_lib.experiments.pictures import write_samples
    from pcdm_lib.models import pretrained

    where = records.find_device(device)
    for old in sorted(outputs.check_folder(out).glob("sample-*.png")):
        outputs.check_output(old, force=force)
    cascade, headers = pretrained.open_model(sources(runs), weights, where)
    label = headers[0]["data"].get("label", "unnamed data")
    print(f"trained on: {label}", flush=True)
    generator = torch.Generator(where).manual_seed(seed)
    if cascade.exact:
        say_unused({"--steps": steps != 100}, ", ".join(runs))
    total = len(cascade.parts) if cascade.exact else steps * len(cascade.specs)
    unit = "level" if cascade.exact else "step"
    with tqdm(total=total, desc="sampling", unit=unit, disable=quiet) as bar:
        samples = cascade.sample(count, steps, generator, where, on_step=bar.update)
    write_samples(cascade, samples, out, f"sample of a model trained on {label}")
    print(f"{count} images, scale by scale, in {out}")
    return 0
