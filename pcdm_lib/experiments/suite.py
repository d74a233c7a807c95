"""All experiments of the paper at one budget, one after the other: what `make tables` runs.

Every part is a notebook of `reproduce/`, executed by papermill into the suite's folder, its run
beside it. A part that was executed with the same parameters to its end is not run again (also not
after a change of the code: each result names its commit), and a part that was stopped continues
from its checkpoint, so the same command goes on where it was stopped. What reads the runs,
out-of-distribution detection and compression, is made anew after a new run, and the tables always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from pcdm_lib import records
from pcdm_lib.experiments.experiment import home


@dataclass(frozen=True)
class Part:
    """One notebook with its parameters. `trains`: whether it takes a budget in minutes and a folder
    for its run."""

    name: str
    notebook: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True
    always: bool = False


PARTS = (
    Part("wavelet", "cifar_wavelet"),
    Part("laplacian", "cifar_laplacian"),
    Part("vdm", "cifar_vdm"),
    Part("standard_cascade", "cifar_standard_cascade"),
    Part("wavelet_edm", "cifar_wavelet", {"preset": "edm"}),
    Part("imagenet64", "imagenet", {"size": 64}),
    Part("imagenet128", "imagenet", {"size": 128}),
    Part("ood", "ood", trains=False),
    Part("compression", "compression", trains=False),
    Part("tables", "tables", trains=False, always=True),
)


def run(
    minutes: float,
    *,
    dataset: str = "auto",
    seed: int = 0,
    preset: str = "small",
    device: str = "auto",
    only: Sequence[str] = (),
    folder: Path | str | None = None,
    changes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, str]]:
    """Run the parts that are not done yet.

    Args:
        minutes: training of each system.
        dataset: of the CIFAR parts, and of the larger images where it is of ImageNet or crops.
        only: names of parts, all by default; the tables are always made.
        folder: where notebooks and runs go; by default one under `runs/tables/` for this data set,
            preset, budget and seed.
        changes: other values of notebooks' parameters, such as `heldout_images`, for the parts that
            have them.
    Returns:
        The folder, and for each part that failed its error; the others are run all the same.
    Raises:
        ValueError: for a part that does not exist, a parameter that none has, or a budget that is
            not positive.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise ValueError(f"the budget must be a positive number of minutes, got {minutes}")
    unknown = sorted({*only} - {part.name for part in PARTS})
    if unknown:
        raise ValueError(
            f"unknown parts {unknown}: there are {', '.join(part.name for part in PARTS)}"
        )
    notebooks = home() / "reproduce"
    if not notebooks.is_dir():
        raise ValueError(
            f"{notebooks} is missing: the notebooks come with the repository, not with an "
            f"installed package; clone it"
        )
    kind = dataset.replace("/", "_").replace(":", "-")
    folder = (
        Path(folder)
        if folder
        else home() / "runs" / "tables" / f"{kind}-{preset}-{minutes:g}min-seed{seed}"
    )
    folder = folder.resolve()
    parts = [part for part in PARTS if part.always or not only or part.name in only]
    known = {
        part.name: {*papermill.inspect_notebook(notebooks / f"{part.notebook}.ipynb")}
        for part in PARTS
    }
    strange = sorted({*(changes or {})} - set().union(*known.values()))
    if strange:
        raise ValueError(f"no notebook has the parameters {strange}")
    taken = sorted(
        {*(changes or {})}
        & {"minutes", "steps", "dataset", "size", "seed", "preset", "device", "output_dir", "runs"}
    )
    if taken:
        raise ValueError(
            f"{taken} are set by the suite itself: use its own options, or run the notebook by "
            f"papermill"
        )
    if dataset.startswith(("folder:", "crops:")):  # the notebooks run in the repository's folder
        prefix, _, path = dataset.partition(":")
        dataset = f"{prefix}:{Path(path).expanduser().absolute()}"
    folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    for number, part in enumerate(parts, start=1):
        parameters = _parameters(part, minutes, dataset, seed, preset, device, folder)
        parameters |= {
            key: value for key, value in (changes or {}).items() if key in known[part.name]
        }
        out = folder / f"{part.name}.ipynb"
        head = f"part {number} of {len(parts)}, {part.name}"
        # what reads the runs of others is done only while no run has been made anew
        ends = [folder / f"{p.name}.done.json" for p in PARTS if p.trains and not part.trains]
        newest = max((path.stat().st_mtime for path in ends if path.exists()), default=0.0)
        marker = folder / f"{part.name}.done.json"
        if not part.always and done(out, marker, parameters) and marker.stat().st_mtime >= newest:
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: {part.notebook}.ipynb into {out}", flush=True)
        marker.unlink(missing_ok=True)
        error = _execute(notebooks / f"{part.notebook}.ipynb", out, parameters, progress)
        if error:
            failed[part.name] = error
            print(f"{head}: failed, {error}", flush=True)
        else:
            # papermill marks a notebook as ended however it ended: what is done says so in a file
            # of its own
            records.write_json(
                marker, {"parameters": parameters, "commit": records.provenance()["commit"]}
            )
    return folder, failed


def _execute(notebook: Path, out: Path, parameters: Mapping[str, Any], progress: bool) -> str:
    """Run one notebook in the repository's folder; empty, or the error that ended it."""
    try:
        papermill.execute_notebook(
            notebook,
            out,
            parameters=parameters,
            cwd=home(),
            progress_bar=progress,
            kernel_name="python3",
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # a kernel that died or did not start
        return f"{type(error).__name__}: {error}"
    return ""


def _parameters(
    part: Part, minutes: float, dataset: str, seed: int, preset: str, device: str, folder: Path
) -> dict[str, Any]:
    if part.trains:
        own = {
            "minutes": float(minutes),
            "seed": seed,
            "preset": preset,
            "device": device,
            "output_dir": str(folder / "runs" / part.name),
        }
        if part.notebook != "imagenet" or dataset.startswith(("imagenet", "crops:")):
            own["dataset"] = dataset
    else:
        own = {"runs": str(folder)}
        if part.name in ("ood", "compression"):
            own |= {"dataset": dataset, "seed": seed, "device": device}
    return own | dict(part.parameters)


def done(out: Path, marker: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether this notebook was executed to its end with these parameters."""
    return (
        out.is_file()
        and marker.is_file()
        and records.read_json(marker).get("parameters") == dict(parameters)
    )
