"""Reading what a training run left: its log, its checkpoints, the cascade that one or more runs
trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from pcdm_lib import records
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config, config_differences, modern_names
from pcdm_lib.models.headers import check_header
from pcdm_lib.models.presets import build

FORMAT = 1
FILES = ("config.json", "*.safetensors", "state.pt", "state.*.pt")  # of a checkpoint


class CheckpointMismatch(ValueError):
    """A checkpoint that belongs to another configuration, data set or version."""


def list_checkpoints(run_dir: Path | str) -> list[Path]:
    """The whole checkpoints of a run, oldest first.

    Args:
        run_dir: the run's folder.

    Returns:
        Their folders; none for a run that has none.
    """
    folder = Path(run_dir) / "checkpoints"
    return (
        sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))
        if folder.is_dir()
        else []
    )


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from the name of its folder.

    Args:
        checkpoint: the folder.

    Returns:
        The number of updates behind it.
    """
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(run_dir: Path | str) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    Args:
        run_dir: the run's folder.

    Returns:
        Its folder.
    """
    found = list_checkpoints(run_dir)
    return found[-1] if found else None


def read_log(run_dir: Path | str) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that was cut short is left out.

    Args:
        run_dir: the run's folder.

    Returns:
        One dictionary a line; none where there is no log.

    Raises:
        ValueError: naming a line, not the last one, that is not JSON.
    """
    path = Path(run_dir) / "log.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            if number != len(lines) - 1:
                raise ValueError(
                    f"{path}, line {number + 1} is not JSON: the log was edited"
                ) from None
    return rows


def load_weights(module: nn.Module, path: Path, *, rounded: bool = False) -> None:
    """Load one safetensors file into a module, number by number as it is stored.

    Args:
        module: whose `state_dict` has the file's names and shapes.
        path: the file.
        rounded: whether tensors may be float16, as those of shipped models are.

    Raises:
        ValueError: naming the file, where it is missing, damaged, of another network, holds values
            that are not finite, or holds another type of numbers: a conversion would change the
            model without a word.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint is not whole") from None
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it was cut short or is no safetensors file"
        ) from error
    own = module.state_dict()
    wrong = sorted({*own} ^ {*tensors}) + [
        k for k in own if k in tensors and own[k].shape != tensors[k].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit this network: {len(wrong)} tensors are missing, unexpected or "
            f"of another shape, "
            f"the first is {wrong[0]}"
        )
    allowed = (torch.float16,) if rounded else ()
    for k, v in tensors.items():
        if v.dtype not in (own[k].dtype, *allowed):
            raise ValueError(
                f"{path} holds {v.dtype} numbers in {k}, expected {own[k].dtype}: it was converted "
                f"after training. Restore the file that training wrote"
            )
    broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {broken[0]}")
    module.load_state_dict(tensors)


def load_cascade(
    *run_dirs: Path | str,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    shown: str | None = None,
) -> tuple[Cascade, list[dict[str, Any]]]:
    """The cascade that one or more runs trained, from their newest checkpoints, and the header of
    each.

    Several runs may each have trained some of the scales; together they must have all, and agree on
    the model and on the training images.

    Args:
        run_dirs: folders of runs, or of checkpoints.
        weights: "ema" or "raw".
        device: where the cascade goes.
        shown: what networks were shown in place of the coarser image, where they were
            (`conditioning.load_shown` says it).

    Returns:
        The cascade in evaluation mode, and the header of each run.

    Raises:
        ValueError: for another name of weights, no runs, a run without a checkpoint, or a damaged
            one.
        CheckpointMismatch: where the runs do not belong together, or scales are missing.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if not run_dirs:
        raise ValueError("give at least one run folder")
    headers, folders = [], []
    for run in run_dirs:
        folder = Path(run) if (Path(run) / "state.pt").exists() else newest_checkpoint(run)
        if folder is None:
            raise ValueError(f"{run} holds no checkpoint: train first, or check the path")
        header = records.read_json(folder / "config.json")
        if not isinstance(header, dict):
            raise ValueError(f"{folder / 'config.json'} does not describe a checkpoint: restore it")
        if header.get("format") != FORMAT:
            raise CheckpointMismatch(
                f"{folder} has format {header.get('format')}, this version reads {FORMAT}: use "
                f"the version that wrote it"
            )
        if header.get("shown") not in (None, shown):
            raise CheckpointMismatch(
                f"the networks of {run} were trained on {header['shown']!r} in place of the "
                f"coarser image: "
                "load them by conditioning.load_shown"
            )
        headers.append(header)
        folders.append(folder)
    for header, folder in zip(headers, folders):
        check_header(header, folder / "config.json")
    configs = [Config.from_dict(header["config"]) for header in headers]
    for header, config in zip(headers[1:], configs[1:]):
        if config.model != configs[0].model:
            lines = config_differences(
                modern_names(headers[0]["config"])["model"], modern_names(header["config"])["model"]
            )
            raise CheckpointMismatch(
                "these runs trained different models:\n  " + "\n  ".join(lines)
            )
        if header["data"].get("train_sha256") != headers[0]["data"].get("train_sha256"):
            raise CheckpointMismatch(
                "these runs were trained on different images: "
                + " and ".join(
                    str(h["data"].get("label", "unnamed data")) for h in (headers[0], header)
                )
            )
    try:
        cascade = build(configs[0].model)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folders[0] / 'config.json'}: {error}: restore the file") from error
    loaded = set()
    for header, folder in zip(headers, folders):
        for name in header["scales"]:
            if name in loaded:
                raise CheckpointMismatch(
                    f"scale {name} was trained by two of these runs: name only one of them"
                )
            index = cascade.map.names().index(name)
            load_weights(cascade.scales[index], folder / f"{weights}.{name}.safetensors")
            loaded.add(name)
    missing = [n for n in cascade.map.names() if n not in loaded]
    if missing:
        raise CheckpointMismatch(
            f"no checkpoint for the scales {missing}: name the runs that trained them too"
        )
    return cascade.to(device).eval(), headers
