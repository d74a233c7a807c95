"""All experiments of the paper at one budget, one after the other: what `make tables` runs.

Every part is a notebook of `reproduce/`, executed by papermill into the suite's folder, its run
beside it. A part that was executed with the same parameters to its end is not run again (also not
after a change of the code: each result names its commit), and a part that was stopped continues
from its checkpoint, so the same command goes on where it was stopped. What reads the runs,
out-of-distribution detection and compression, is made anew after a new run, and the tables always.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pcdm_lib import outputs, records
from pcdm_lib.advice import need
from pcdm_lib.data import paths
from pcdm_lib.data.paths import home


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


@dataclass(frozen=True)
class Step:
    """One part with all its parameters: what `run` executes, or finds done."""

    part: Part
    parameters: Mapping[str, Any]
    out: Path
    done: bool

    @property
    def marker(self) -> Path:
        """The file that says that the part was executed to its end."""
        return self.out.with_suffix(".done.json")


def plan(
    minutes: float,
    *,
    dataset: str = "auto",
    seed: int = 0,
    preset: str = "small",
    device: str = "auto",
    only: Sequence[str] = (),
    folder: Path | str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Path, list[Step]]:
    """The folder, and the parts in their order with their parameters; does no work.

    Args:
        minutes: training of each system.
        dataset: of the CIFAR parts, and of the larger images where it is of ImageNet or crops.
        only: names of parts, all by default; the tables are always made.
        folder: where notebooks and runs go; by default one under `runs/tables/` for this data set,
            preset, budget and seed.
        changes: other values of notebooks' parameters, such as `heldout_images`, for the parts that
            have them.
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
    notebooks = _notebooks()
    kind = dataset.replace("/", "_").replace(":", "-")
    folder = (
        Path(folder)
        if folder
        else Path("runs", "tables") / f"{kind}-{preset}-{minutes:g}min-seed{seed}"
    ).resolve()
    changes = changes or {}
    inspect = need("papermill").inspect_notebook
    known = {part.name: {*inspect(notebooks / f"{part.notebook}.ipynb")} for part in PARTS}
    _check_changes(changes, set().union(*known.values()))
    dataset = paths.absolute(dataset)  # the notebooks run in the repository's folder
    steps: list[Step] = []
    for part in (part for part in PARTS if part.always or not only or part.name in only):
        parameters = _parameters(part, minutes, dataset, seed, preset, device, folder)
        parameters |= {key: value for key, value in changes.items() if key in known[part.name]}
        step = Step(part, parameters, folder / f"{part.name}.ipynb", False)
        trained_anew = not part.trains and any(s.part.trains and not s.done for s in steps)
        steps.append(replace(step, done=not trained_anew and _is_done(step)))
    return folder, steps


def run(minutes: float, *, progress: bool = True, **choices: Any) -> tuple[Path, dict[str, str]]:
    """Run the parts that are not done yet.

    Args:
        minutes, choices: as `plan` takes them.
        progress: show each notebook's progress bars.
    Returns:
        The folder, and for each part that failed its error; the others are run all the same.
    Raises:
        ValueError: as `plan`.
        FileExistsError: where a file in the folder, which a part would write, is the user's own.
    """
    folder, steps = plan(minutes, **choices)
    _check_places(folder, steps)
    folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    for number, step in enumerate(steps, start=1):
        part = step.part
        head = f"part {number} of {len(steps)}, {part.name}"
        if _is_done(step):  # anew: what was done may have been made older by a part just now
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: {part.notebook}.ipynb into {step.out}", flush=True)
        step.marker.unlink(missing_ok=True)
        notebook = _notebooks() / f"{part.notebook}.ipynb"
        error = _execute(notebook, step.out, step.parameters, progress)
        if error:
            failed[part.name] = error
            print(f"{head}: failed, {error}", flush=True)
        else:
            # papermill marks a notebook as ended however it ended: what is done says so in a file
            # of its own
            records.write_json(
                step.marker,
                {"parameters": step.parameters, "commit": records.provenance()["commit"]},
            )
    return folder, failed


def _notebooks() -> Path:
    notebooks = home() / "reproduce"
    if not notebooks.is_dir():
        raise ValueError(
            f"{notebooks} is missing: the notebooks come with the repository, not with an "
            f"installed package; clone it"
        )
    return notebooks


def _check_places(folder: Path, steps: Sequence[Step]) -> None:
    """Refuse a folder in which a part would replace what is not this suite's."""
    outputs.check_folder(folder)
    for step in steps:
        for path in (step.out, step.marker):
            real = outputs.check_output(path, force=True)
            text = real.read_text(errors="replace") if real.exists() else ""
            word = '"papermill"' if path == step.out else '"parameters"'
            if real.exists() and word not in text:  # torn or whole, it says who wrote it
                raise FileExistsError(
                    f"{path} is there already, and no part of the tables: move it, or give "
                    f"another folder"
                )


def _check_changes(changes: Mapping[str, Any], known: set[str]) -> None:
    strange = sorted({*changes} - known)
    if strange:
        raise ValueError(f"no notebook has the parameters {strange}")
    own = {"minutes", "steps", "dataset", "size", "seed", "preset", "device", "output_dir", "runs"}
    taken = sorted({*changes} & own)
    if taken:
        raise ValueError(
            f"{taken} are set by the suite itself: use its own options, or run the notebook by "
            f"papermill"
        )


def _is_done(step: Step) -> bool:
    """Whether a part was executed to its end with these parameters, and no run that it reads is
    newer."""
    if step.part.always or not done(step.out, step.marker, step.parameters):
        return False
    if step.part.trains:
        return True
    ends = [step.out.with_name(f"{part.name}.done.json") for part in PARTS if part.trains]
    newest = max((path.stat().st_mtime for path in ends if path.exists()), default=0.0)
    return step.marker.stat().st_mtime >= newest


def _execute(notebook: Path, out: Path, parameters: Mapping[str, Any], progress: bool) -> str:
    """Run one notebook in the repository's folder; empty, or the error that ended it."""
    papermill = need("papermill")
    from pcdm_lib.experiments import runner  # needs papermill

    before = os.environ.get("PCDM_DATA")
    os.environ["PCDM_DATA"] = str(paths.data_folder().absolute())  # the kernel inherits it
    try:
        papermill.execute_notebook(
            notebook,
            out,
            parameters=parameters,
            cwd=home(),
            progress_bar=False,
            engine_name=runner.register() if progress else None,
            kernel_name="python3",
        )
    except papermill.exceptions.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # a kernel that died or did not start
        return f"{type(error).__name__}: {error}"
    finally:
        del os.environ["PCDM_DATA"]
        if before is not None:
            os.environ["PCDM_DATA"] = before
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
    if not (out.is_file() and marker.is_file()):
        return False
    try:
        found = records.read_json(marker)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("parameters") == dict(parameters)
