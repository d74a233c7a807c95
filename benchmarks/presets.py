"""Appendix B's presets at full size: parameters, and one update and one evaluation of every scale
at a small batch.

    python -m benchmarks.presets
    python -m benchmarks.presets --presets paper-cifar10 --systems wavelet,vdm --batch 2

The first runs every paper-* preset, with wavelet and pyramid. The larger presets take minutes a
scale on a CPU.

Scales are trained one after the other, as they can be on different machines, so the memory needed
is that of one network with its gradients, averages and AdamW's state. Images are uniform noise:
what is shown is that the preset runs, not what it learns.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pcdm_lib import outputs, records
from pcdm_lib.data import uniform_images
from pcdm_lib.experiments.experiment import markdown_table
from pcdm_lib.models import presets
from pcdm_lib.training import Trainer

DRAWS = 4  # noise levels an image in the evaluation: a figure to see that it runs, not to quote


def run_scale(name: str, system: str, scale: str, batch: int, device: str) -> dict[str, Any]:
    """One update and one evaluation of a scale: its parameters, operations, loss and bound."""
    setting = presets.PAPER_SETTINGS[name]
    shape = (3, setting.side, setting.side)
    config = presets.preset(name, system, shape).override({"batch_size": batch})
    images = uniform_images(batch, shape, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        trainer = Trainer(config, images, Path(folder) / "run", scales=[scale], device=device)
        losses: list[float] = []
        trainer.run(
            steps=1, progress=False, log_every=1, on_log=lambda record: losses.append(record["bpd"])
        )
        seconds = time.monotonic() - start
    index = trainer.scales[0].index
    with torch.no_grad():
        draws = images.to(device).repeat(DRAWS, 1, 1, 1)
        bound = trainer.cascade.eval().bound(
            draws, torch.Generator(device).manual_seed(0), scales=[index]
        )
    bits = float(bound.total.mean()) / (math.log(2) * trainer.cascade.dims)
    if not math.isfinite(bits):
        raise FloatingPointError(f"{name}, {system}, {scale}: loss {losses[0]}, bound {bits} bpd")
    spec = trainer.cascade.specs[index]
    return {
        "preset": name,
        "system": system,
        "scale": scale,
        "seen as": "x".join(map(str, spec.view_shape)),
        "parameters": sum(p.numel() for p in trainer.scales[0].module.network.parameters()),
        "GFLOP an image": trainer.costs[scale] / 1e9,
        "loss, bpd": losses[0],
        f"bound after it, bpd, {DRAWS} draws": bits,
        "update and checkpoint, s": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run them; the exit status: 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.presets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--presets", default=",".join(presets.PAPER_SETTINGS))
    parser.add_argument("--systems", default="wavelet,laplacian")
    parser.add_argument("--scales", default="", help="only these, by name (default: all)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", type=Path, default=None, help="JSON file (default: runs/benchmarks/presets.json)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    options = parser.parse_args(arguments)
    out = options.out or Path("runs", "benchmarks", "presets.json")
    try:
        outputs.check_output(out, force=options.force)
        records.check_device(options.device)
        if options.batch < 1:
            raise ValueError(f"the batch needs at least one image, got {options.batch}")
        wanted = [s for s in options.scales.split(",") if s]
        work = []
        for name in options.presets.split(","):
            if name not in presets.PAPER_SETTINGS:
                raise ValueError(
                    f"unknown preset {name!r}: one of {', '.join(presets.PAPER_SETTINGS)}"
                )
            side = presets.PAPER_SETTINGS[name].side
            for system in options.systems.split(","):
                scales = presets.parameter_counts(
                    presets.preset(name, system, (3, side, side)).model
                )
                work += [(name, system, scale) for scale in scales if not wanted or scale in wanted]
        if not work:
            raise ValueError(f"no preset has the scales {wanted}")
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    rows = []
    for name, system, scale in work:
        rows.append(run_scale(name, system, scale, options.batch, options.device))
        print(rows[-1], flush=True)
        gc.collect()
    records.write_json(
        out,
        {"rows": rows, "batch": options.batch, "provenance": records.provenance(options.device)},
    )
    print(f"{markdown_table(rows)}\nwritten: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
