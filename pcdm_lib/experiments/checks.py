"""What would make a part of the tables fail is looked for before the first of them is trained."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdm_lib.advice import MissingExtra
from pcdm_lib.data import sets
from pcdm_lib.data.images import ImageData
from pcdm_lib.data.paths import home
from pcdm_lib.experiments.experiment import data_root
from pcdm_lib.experiments.suite import Step
from pcdm_lib.models import checkpoints, headers

# modules of extras that a notebook cannot do without, by its name
_NEEDS = {"compression": ("constriction", "imagecodecs"), "ood": ("sklearn",)}
_LEAST_OOD = 6  # held-out images: two to test, as many others, from thirds


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse parts that cannot succeed: their parameters, packages, data and older runs.

    Args:
        steps: the parts, as `suite.plan` gives them. Those that are done are left out.

    Raises:
        ValueError: for a parameter that a notebook does not take, for too few images, and for an
            older run in the way that is damaged or of another training.
        MissingExtra: for a package that is not installed.
        FileNotFoundError: for data that are not there. Also what `load_data` raises.
    """
    steps = [step for step in steps if not step.done]
    for step in steps:
        _check_parameters(step)
        for module in ("matplotlib", *_NEEDS.get(step.part.notebook, ())):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra(module)
    loaded: dict[tuple[str, int | None], ImageData] = {}
    for step in steps:
        name, size = step.parameters.get("dataset"), step.parameters.get("size")
        if not isinstance(name, str):
            continue
        if (name, size) not in loaded:
            loaded[name, size] = sets.load_data(name, root=data_root(), size=size)
        images = loaded[name, size]
        if step.part.name == "ood" and len(images.heldout) < _LEAST_OOD:
            raise ValueError(
                f"part ood takes {_LEAST_OOD} held-out images or more, {images.label}: give "
                f"another data set, or leave the part out by --only"
            )
        if step.part.trains:
            _check_run(step, images)


def _check_parameters(step: Step) -> None:
    """Run the notebook's own check: its parameters, and what stands up to the next import."""
    notebook = home() / "reproduce" / f"{step.part.notebook}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    place = next(i for i, c in enumerate(codes) if "parameters" in c["metadata"].get("tags", ()))
    names: dict[str, Any] = {}
    exec("".join(codes[place]["source"]), names)  # this repository's own
    names |= step.parameters
    try:
        exec(_checks("".join(codes[place + 1]["source"])), names)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"part {step.part.name}: {error}") from error


def _checks(source: str) -> Any:
    """The beginning of a cell, up to the first import behind its call of check_parameters."""
    tree, found, called = ast.parse(source), [], False
    for statement in tree.body:
        if called and isinstance(statement, (ast.Import, ast.ImportFrom)):
            break
        called = called or "check_parameters(" in ast.unparse(statement)
        found.append(statement)
    return compile(ast.Module(found, []), "<the notebook's check>", "exec")


def _check_run(step: Step, images: ImageData) -> None:
    """That a run which this part would continue is whole, and one of this training."""
    folder = Path(str(step.parameters["output_dir"]))
    newest = checkpoints.newest_checkpoint(folder)
    if newest is None:
        return
    header = headers.read_header(newest)
    own: Mapping[str, Any] = {
        "seed": step.parameters["seed"],
        "preset": step.parameters["preset"],
        "images": images.source["train_sha256"],
    }
    found = {
        "seed": header["seed"],
        "preset": header["config"]["preset"],
        "images": header["data"].get("train_sha256"),
    }
    other = [key for key in own if own[key] != found[key]]
    if other:
        raise ValueError(
            f"part {step.part.name} would continue {folder}, which was trained with other "
            f"{' and '.join(other)}: move it, or give another folder by --out"
        )
