"""A model kept beside a file that only it can decode: `out.pcdm.model/` beside `out.pcdm`.

A run's folder may be trained on or deleted; what was kept stays as it was:

    config.json              the configuration, and the headers of the training
    <scale>.safetensors      the weights, number by number
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pcdm_lib import outputs, records
from pcdm_lib.models import checkpoints
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config
from pcdm_lib.models.presets import build

FORMAT = 1
SUFFIX = ".model"
FILES = ("config.json", "*.safetensors")


def folder_beside(file: Path) -> Path:
    """Where the model of a `.pcdm` file is kept."""
    return file.with_name(f"{file.name}{SUFFIX}")


def is_kept(path: Path | str) -> bool:
    """Whether that is the folder of a kept model."""
    path = Path(path)
    if not (path / "config.json").is_file() or (path / "state.pt").exists():
        return False
    found = records.read_json(path / "config.json")
    return isinstance(found, dict) and found.get("kept") == FORMAT


def check_place(path: Path, force: bool = False) -> None:
    """Refuse a folder where a model cannot be kept, before the work.

    Args:
        path: the folder.
        force: whether a kept model that is there may be replaced.

    Raises:
        ValueError: where something else than a kept model is there.
        FileExistsError: where a kept model is there, without `force`.
    """
    if path.exists() and not is_kept(path):
        raise ValueError(f"{path} is there and no kept model: move it, or give another output")
    others = outputs.strangers(path, FILES)
    if others:
        raise ValueError(f"{path} holds {others[0]} too: move it, or give another output")
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already: give another output, or --force")


def keep(cascade: Cascade, headers: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Write a model into a folder, whole or not at all.

    Args:
        cascade: in float32, as `open_model` gives it.
        headers: of its training, from there too.
        path: the folder; one that is there is replaced where it is a kept model.

    Raises:
        ValueError: where something else is there.
    """
    path = Path(path)
    check_place(path, force=True)
    with outputs.whole_folder(path, FILES) as folder:
        for scale in cascade.scales:
            tensors = {k: v.detach().cpu().contiguous() for k, v in scale.state_dict().items()}
            records.write_tensors(folder / f"{scale.name}.safetensors", tensors)
        training = [{k: v for k, v in header.items() if k != "config"} for header in headers]
        facts = {"kept": FORMAT, "config": headers[0]["config"], "training": training}
        records.write_json(folder / "config.json", facts)


def load_kept(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[Cascade, list[dict[str, Any]]]:
    """A kept model and the headers of its training.

    Args:
        path: the folder.
        device: where the cascade goes.

    Returns:
        The cascade in evaluation mode, and the headers.

    Raises:
        ValueError: naming the file that is missing, damaged or of another model.
    """
    path = Path(path)
    facts = records.read_json(path / "config.json")
    try:
        config, training = Config.from_dict(facts["config"]), list(facts["training"])
        cascade = build(config.model)
    except (
        ArithmeticError,
        LookupError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{path / 'config.json'} does not describe a model ({error}): get a whole copy"
        ) from error
    for scale in cascade.scales:
        checkpoints.load_weights(scale, path / f"{scale.name}.safetensors")
    return cascade.to(device).eval(), [header | {"config": facts["config"]} for header in training]
