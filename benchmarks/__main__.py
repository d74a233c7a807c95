"""Measure speed, memory and efficiency on this machine and write one report, as JSON and as a
Markdown table.

    python -m benchmarks
    python -m benchmarks --parts throughput,stages --threads 1
    python -m benchmarks --device cuda --presets small,paper-cifar10 --parts all

The first runs every part but `paper` on the presets tiny and small. It takes a few minutes on two
cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.parts import PARTS, Settings
from benchmarks.timing import CLOCKS
from pcdm_lib import data, outputs, records
from pcdm_lib.models.presets import PRESETS, SYSTEMS


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for; the exit status: 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts",
        default="",
        help=f"all, or names with commas: {', '.join(PARTS)} (default: all, on a CPU without "
        f"paper)",
    )
    parser.add_argument(
        "--presets",
        default="",
        help="for `throughput`; the other parts take the last one (default: tiny,small; "
        "paper-cifar10 too on a GPU)",
    )
    parser.add_argument(
        "--systems",
        default="wavelet,vdm,laplacian,standard",
        help="the longer parts take the first two",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="budget of one measurement (default: 1); at least three rounds are run",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="torch's threads on the host (default: torch's choice)",
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="processor: the time that this process was given, for one thread on a shared machine",
    )
    parser.add_argument(
        "--updates",
        type=int,
        default=None,
        help="how many updates `paper` times at once (default: 1 on a CPU, 10 on a GPU)",
    )
    parser.add_argument(
        "--dataset", default="auto", help="auto, photos, cifar10, folder:PATH (default: auto)"
    )
    parser.add_argument(
        "--data-root", default=None, help="data folder (default: $PCDM_DATA, else ./data)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="JSON file; Markdown goes beside it (default: runs/benchmarks/DEVICE-TIME.json)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the report holds the parts that were done", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)


def _names(text: str, known: Any, what: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n for n in text.split(",") if n))
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise ValueError(
            f"unknown {what} {', '.join(map(repr, unknown)) or repr(text)}: names separated by "
            f"commas, of {', '.join(known)}"
        )
    return names


def _run(options: argparse.Namespace) -> int:
    device = records.check_device(options.device)
    gpu = device.type == "cuda"
    default = ",".join(name for name in PARTS if gpu or name != "paper")
    parts = _names(
        ",".join(PARTS) if options.parts == "all" else options.parts or default, PARTS, "part"
    )
    presets = _names(
        options.presets or ("tiny,small,paper-cifar10" if gpu else "tiny,small"), PRESETS, "preset"
    )
    systems = _names(options.systems, SYSTEMS, "system")
    updates = (10 if gpu else 1) if options.updates is None else options.updates
    if (
        not options.seconds > 0
        or updates < 1
        or (options.threads is not None and options.threads < 1)
    ):
        raise ValueError(
            f"seconds, updates and threads must be positive, got {options.seconds}, {updates} and "
            f"{options.threads}"
        )
    out = (
        options.out
        or Path("runs", "benchmarks") / f"{device.type}-{datetime.now():%Y%m%d-%H%M%S}.json"
    )
    if out.suffix != ".json":
        raise ValueError(
            f"--out {out} must end in .json: the table goes beside it, under the same name with .md"
        )
    for path in (out, out.with_suffix(".md")):
        outputs.check_output(path, force=options.force)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.clock == "processor" and (gpu or torch.get_num_threads() > 1):
        raise ValueError(
            "--clock processor adds up the time of all threads, so it goes with --device cpu "
            "--threads 1"
        )
    images = data.load_data(options.dataset, root=options.data_root, download=False)
    settings = Settings(
        device,
        options.seconds,
        presets,
        systems,
        images.train,
        images.heldout,
        options.seed,
        updates,
        options.clock,
    )
    facts = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "parts": list(parts),
        "presets": list(presets),
        "systems": list(systems),
        "seconds": options.seconds,
        "seed": options.seed,
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "data": images.label,
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    print(f"data: {images.label}", flush=True)
    done = {}
    for name in parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        section = PARTS[name](settings)
        done[name] = section, time.perf_counter() - start
        # after every part, so that a failure of a later one costs no more than that
        text = report.write(out, facts, str(device), done)
    print(text)
    print(f"written: {out} and {out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
