"""One training configuration in a process of its own, for its peak memory: a request as JSON on
stdin, the figures on stdout."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from benchmarks.steps import LibraryStep
from benchmarks.timing import Clock, measure, quartiles
from pcdm_lib.models import Config


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Largest number of bytes in use so far, and by what account.

    On Linux the kernel's VmHWM of this program image: getrusage's figure would include what the
    parent held when it forked.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "max_memory_allocated"
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, "VmHWM"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


def main() -> None:
    """Measure what stdin asks for."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    device, config = torch.device(request["device"]), Config.from_dict(request["config"])
    generator = torch.Generator().manual_seed(request["seed"])
    images = torch.randint(
        0,
        config.model.max_value + 1,
        (config.training.batch_size, *config.model.image_shape),
        dtype=torch.uint8,
        generator=generator,
    )
    step = LibraryStep(config, images, device, seed=request["seed"])
    before, _ = peak_memory(device)
    seconds = quartiles(measure(step, request["seconds"], Clock(device, request["clock"])))[1]
    peak, method = peak_memory(device)
    parameters = sum(p.numel() for p in step.cascade.networks.parameters())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak": peak,
                "before": before,
                "method": method,
                "parameters": parameters,
            }
        )
    )


if __name__ == "__main__":
    main()
