"""What each choice of a preset is worth: one scale trained for the same number of steps with the
choice and without it.

    python -m benchmarks.learning --system laplacian --scale residual1 --steps 300 --dataset cifar10
    python -m benchmarks.learning --system wavelet --steps 900 --dataset cifar10 --alone --set
    channels=48,64 --set blocks=1

Trains on all training images but the last 600 (a tenth, where there are fewer than 6,000) and
scores on those, so nothing is chosen on the held-out images. The score is the scale's share of the
image's bits per dimension; differences are paired, image by image.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdm_lib import data, outputs, records
from pcdm_lib.experiments.experiment import markdown_table
from pcdm_lib.maps import make_map
from pcdm_lib.models import Config, preset
from pcdm_lib.models.presets import SYSTEMS
from pcdm_lib.training import Trainer

WITHOUT: dict[str, dict[str, Any]] = {
    "the preset": {},
    "without whitened inputs": {"inputs": "plain"},
    "without a fitted schedule": {"schedule": "linear"},
    "AdamW instead of Muon": {"optimiser": "adamw"},
    "none of the three": {"inputs": "plain", "schedule": "linear", "optimiser": "adamw"},
}


def learn(
    config: Config,
    images: Tensor,
    scored: Tensor,
    scale: str,
    steps: int,
    seed: int,
    repeats: int = 4,
) -> tuple[Tensor, float]:
    """Bits per dimension that a scale takes of each scored image after training (EMA weights),
    (N,), and seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, images, Path(folder) / "run", seed=seed, scales=[scale])
        trainer.run(steps=steps, checkpoint_minutes=math.inf)
    (trained,) = trainer.scales
    trained.module.load_state_dict(trained.ema.state_dict())
    cascade, generator = trainer.cascade.eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [
            torch.stack(
                [
                    cascade.bound(batch, generator, scales=[trained.index]).total
                    for _ in range(repeats)
                ]
            ).mean(dim=0)
            for batch in scored.split(100)
        ]
    return torch.cat(parts).double() / (math.log(2) * cascade.dims), trainer.seconds / trainer.step


def compare(
    config: Config,
    images: Tensor,
    scale: str,
    steps: int,
    seed: int,
    variants: Mapping[str, Mapping[str, Any]] = WITHOUT,
) -> list[dict[str, Any]]:
    """A row for every variant: the score and its paired difference from the first one's, with
    standard errors over the images."""
    held = min(600, len(images) // 10)
    rows, first, first_seconds = [], None, 1.0
    for name, changes in variants.items():
        bpd, seconds = learn(
            config.override(changes), images[:-held], images[-held:], scale, steps, seed
        )
        if first is None:
            first, first_seconds = bpd, seconds
        difference = bpd - first
        rows.append(
            {
                "variant": name,
                "bpd of the scale": bpd.mean().item(),
                "standard error": bpd.std().item() / math.sqrt(held),
                "more than the preset": difference.mean().item(),
                "its standard error": difference.std().item() / math.sqrt(held),
                "time a step, ratio": seconds / first_seconds,
                "steps": steps,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; the exit status: 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--system", default="laplacian", choices=tuple(SYSTEMS))
    parser.add_argument("--scale", default=None, help="its name (default: the finest)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the preset; repeatable",
    )
    parser.add_argument(
        "--alone",
        action="store_true",
        help="score the preset (with --set) only, without what is left out in turn",
    )
    parser.add_argument("--dataset", default="auto")
    parser.add_argument(
        "--data-root", default=None, help="data folder (default: $PCDM_DATA, else ./data)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="JSON file (default: runs/benchmarks/learning-SYSTEM-SCALE.json)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    options = parser.parse_args(arguments)
    try:
        images = data.load_data(options.dataset, root=options.data_root, download=False)
        changes = dict(change.partition("=")[::2] for change in options.set)
        config = preset(options.preset, options.system, tuple(images.train.shape[1:])).override(
            changes
        )
        if options.steps < 1 or len(images.train) < 20:
            raise ValueError(
                f"at least one step and 20 training images are needed, got {options.steps} and "
                f"{len(images.train)}"
            )
        names = make_map(config.model.map, config.model.levels).names()
        scale = options.scale or names[-1]
        if scale not in names:
            raise ValueError(f"unknown scale {scale!r}: {options.system} has {', '.join(names)}")
        name = f"learning-{options.system}-{scale}.json"
        out = options.out or Path("runs", "benchmarks", name)
        outputs.check_output(out, force=options.force)
        print(f"data: {images.label}; scored on the last of its training images", flush=True)
        variants = {" ".join(["the preset", *options.set]): {}} if options.alone else WITHOUT
        rows = compare(config, images.train, scale, options.steps, options.seed, variants)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    records.write_json(
        out,
        records.finite(
            {
                "config": config.to_dict(),
                "scale": scale,
                "steps": options.steps,
                "seed": options.seed,
                "data": images.label,
                "rows": rows,
                "provenance": records.provenance(),
            }
        ),
    )
    print(f"{markdown_table(rows)}\nwritten: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
