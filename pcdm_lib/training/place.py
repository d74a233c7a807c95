"""The folder of a run before a training begins: what of it is a run's, and what the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pcdm_lib import outputs, records
from pcdm_lib.models import checkpoints

CONFIG, LOG = "config.json", "log.jsonl"
_WRITTEN = (LOG, "checkpoints", "results.json", "scores.npz")  # by a run, beside its config.json


def check_place(run_dir: Path | str, resume: bool = False) -> Path | None:
    """Refuse a folder in which no training may begin, before the work; nothing is changed.

    Args:
        run_dir: the folder, there or not.
        resume: whether a run that is there is to go on.

    Returns:
        The newest checkpoint, with steps behind it; None where a training begins with its first
        step.

    Raises:
        FileExistsError: where a run has steps behind it, without `resume`, and where a file that
            the run would write is there and no run wrote it.
        NotADirectoryError: where the name is not a folder's.
        PermissionError: where the folder cannot be made or written.
    """
    folder = outputs.check_folder(run_dir)
    for name in (CONFIG, LOG):
        outputs.check_output(folder / name, force=True)
    newest = checkpoints.newest_checkpoint(folder)
    if newest is not None and checkpoints.step_of(newest) > 0:
        if not resume:
            raise FileExistsError(
                f"{run_dir} holds a run already: resume it, or give another folder"
            )
        return Path(run_dir) / "checkpoints" / newest.name
    begun = _begun(folder) is not None
    theirs = [CONFIG, *_WRITTEN] if not begun else ["results.json"]
    for name in theirs:
        if _holds(folder / name):
            what = "of a run whose checkpoints are gone" if begun else "that no training wrote"
            raise FileExistsError(f"{run_dir} holds {name} {what}: move it, or give another folder")
    return None


def begin(
    run_dir: Path | str, header: Mapping[str, Any], goes_on: Callable[[Mapping[str, Any]], bool]
) -> str:
    """Give the folder of a training that begins with its first step its config.json. What a start
    without a finished step left is cleared away; no other file is touched.

    Args:
        run_dir: a folder that `check_place` allows.
        header: what config.json says.
        goes_on: whether a start with this config.json is the same one; then it is kept.

    Returns:
        One line on what was there, empty where nothing was.

    Raises:
        BlockingIOError: where another process trains in this folder.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with outputs.lock(folder):
        found = _begun(folder)
        if found is not None and goes_on(found):
            return ""
        kept = _clear(folder) if found is not None else ""
        records.write_json(folder / CONFIG, {**header, "provenance": []})
    if found is None:
        return ""
    return f"{run_dir} held a start that finished no step ({_named(found)}): begun anew{kept}"


def _begun(folder: Path) -> dict[str, Any] | None:
    """The config.json of a run, or None where there is none, or a file that no run wrote."""
    try:
        found = records.read_json(folder / CONFIG)
    except (ValueError, OSError):
        return None
    ours = isinstance(found, dict) and {"format", "config", "scales", "provenance"} <= {*found}
    return found if ours else None


def _holds(path: Path) -> bool:
    """Whether there is something of that name; an empty folder is nothing."""
    return any(path.iterdir()) if path.is_dir() else path.exists() or path.is_symlink()


def _clear(folder: Path) -> str:
    """Clear away a start; its log, which may be all that is left of a run, gets another name."""
    outputs.sweep(folder / "checkpoints", r"step-\d+")
    for left in checkpoints.list_checkpoints(folder):
        outputs.remove_folder(left, checkpoints.FILES)
    log = folder / LOG
    if log.is_file() and log.stat().st_size:
        return f", its log is kept as {outputs.set_aside(log).name}"
    return ""


def _named(header: Mapping[str, Any]) -> str:
    """What a start was, in a few words."""
    config = header["config"] if isinstance(header["config"], dict) else {}
    known = [f"{key} {config[key]}" for key in ("preset", "system") if key in config]
    return ", ".join([*known, f"seed {header.get('seed')}"])
